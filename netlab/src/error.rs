//! What can go wrong when a lab is laid out or changed.

use std::io;
use std::time::Duration;

/// Why a lab, or a change to it, did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// Namespaces belong to root.
    #[error("only root can lay out namespaces: run it with sudo, or in a container with all capabilities")]
    NotRoot,
    /// A program that does the work is not installed.
    #[error("the program `{program}` is missing: install the package {package} (apt-get install {package})")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The kernel has no TAP devices, which shaped links are made of.
    #[error("/dev/net/tun is missing: load the kernel module tun, or pass the device into the container")]
    NoTap,
    /// Two nodes of one lab would have the same name.
    #[error("the name {0:?} is taken: every host and router of a lab has its own")]
    Taken(String),
    /// A name that could not be told from something else in a command or a file.
    #[error("the name {0:?} does not do: 1 to 32 letters, digits, `-`, `_` or `.`")]
    BadName(String),
    /// Every address of the plan is given away.
    #[error("no room for another {what}: at most {max}")]
    Full {
        /// What there is no room for.
        what: &'static str,
        /// How many there can be.
        max: usize,
    },
    /// A combination that the lab cannot lay out.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The lab was dropped while one of its handles lived on.
    #[error("the lab has ended: keep it alive for as long as its hosts are used")]
    Ended,
    /// A program that does the work refused to.
    #[error("`{program}` refused: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What it wrote.
        said: String,
    },
    /// The system refused something.
    #[error("failed to {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A shaped link was measured and is not as it was asked for.
    #[error(
        "the link of {node} was asked for a round trip of {asked:?} and has {got:?}: is the machine too busy?"
    )]
    NotAsAsked {
        /// Whose uplink it is.
        node: String,
        /// The shortest round trip that the shape allows.
        asked: Duration,
        /// The shortest one measured; `None` when nothing came back.
        got: Option<Duration>,
    },
}

impl LabError {
    /// Wraps what the system said, for `map_err`.
    pub(crate) fn system(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}
