//! Signals that ask the process to end, and the tie of a child's life to its parent's.
//!
//! Nothing is spawned: a command waits for [`Interrupts::next`] beside its own work and decides what ends how.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What somebody asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Interrupt {
    /// Ctrl-C.
    Keyboard,
    /// `SIGTERM`: a service manager, or a person with `kill`.
    Terminate,
    /// `SIGHUP`: the terminal is gone.
    HangUp,
}

/// The signals, caught from its construction on for the rest of the process.
#[derive(Debug)]
pub(crate) struct Interrupts {
    keyboard: Signal,
    terminate: Signal,
    hang_up: Option<Signal>,
}

impl Interrupts {
    /// Catches Ctrl-C and `SIGTERM`, but leaves `SIGHUP` alone, so that `nohup` keeps its meaning.
    ///
    /// # Errors
    ///
    /// When the system refuses to install a handler.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            keyboard: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: None,
        })
    }

    /// Catches `SIGHUP` too, for a command that must tidy up when its terminal goes.
    ///
    /// # Errors
    ///
    /// As [`Self::catch`].
    pub(crate) fn and_hang_up(mut self) -> io::Result<Self> {
        self.hang_up = Some(signal(SignalKind::hangup())?);
        Ok(self)
    }

    /// The next one. May be dropped and called again without losing any.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.keyboard.recv() => Interrupt::Keyboard,
            _ = self.terminate.recv() => Interrupt::Terminate,
            () = received(self.hang_up.as_mut()) => Interrupt::HangUp,
        }
    }
}

async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Names the parent whose end is to be this process's end too; set by the demo for the processes it starts.
pub(crate) const EXIT_WITH_PARENT: &str = "LAPWING_EXIT_WITH_PARENT";

/// Ends this process with its parent, if [`EXIT_WITH_PARENT`] asks for it: even a parent that was killed with
/// `SIGKILL`, and so could not tidy up, leaves no orphan.
///
/// Call it on the main thread, before any other is started.
///
/// # Errors
///
/// When the system refuses, or the parent is gone already.
pub(crate) fn exit_with_parent() -> io::Result<()> {
    let Some(expected) = std::env::var_os(EXIT_WITH_PARENT) else {
        return Ok(());
    };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // The parent may have ended before the line above took effect; then somebody else has adopted us.
    let parent = std::os::unix::process::parent_id().to_string();
    if expected.to_str() == Some(parent.as_str()) {
        Ok(())
    } else {
        Err(io::Error::other("the process that started this one is gone"))
    }
}
