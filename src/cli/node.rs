//! `lapwing node`: runs one node until it is asked to end.

use lapwing::{Node, NodeHandle, StartError};
use lapwing_gateway::ConfigError;

use super::failure::Failure;
use super::interrupt::{Interrupt, Interrupts};
use super::output::Output;
use super::running;
use crate::config::NodeSettings;
use lapwing_base::chain;

/// Runs a node.
pub(crate) async fn run(settings: NodeSettings, output: Output) -> Result<(), Failure> {
    let mut interrupts = Interrupts::catch().map_err(|error| Failure::new("catch signals", error))?;
    let name = settings.node.name.clone();
    let data_dir = settings.node.data_dir.clone();
    let mut node = tokio::select! {
        biased;
        _ = interrupts.next() => return Err(Failure::Interrupted),
        started = Node::start(settings.node) => {
            started.map_err(not_started)?
        }
    };
    let entry = running::enter(&node.peer_id(), &name, &data_dir).unwrap_or_else(|error| {
        tracing::warn!(%error, "other commands need --data-dir to find this node: its entry cannot be written");
        None
    });
    let outcome = serve(&mut node, &name, &mut interrupts, output).await;
    drop(entry);
    tokio::select! {
        biased;
        () = node.shutdown() => (),
        _ = interrupts.next() => tracing::warn!("asked twice to end: the node ends at once"),
    }
    outcome
}

/// What was asked for wrongly is wrong usage; what the machine refuses is a failure.
fn not_started(error: StartError) -> Failure {
    match error {
        StartError::Gateway(ConfigError::Url { .. })
        | StartError::Data { .. }
        | StartError::Backend(_)
        | StartError::Service { .. }
        | StartError::Spans(_)
        | StartError::Name(_)
        | StartError::NobodyToAsk
        | StartError::BootstrapBesideGateway => Failure::usage(chain(&error)),
        error => Failure::new("start the node", error),
    }
}

/// Tells that the node runs, and waits for its end.
async fn serve(
    node: &mut NodeHandle,
    name: &str,
    interrupts: &mut Interrupts,
    output: Output,
) -> Result<(), Failure> {
    let told = if output.is_json() {
        output.document(&serde_json::json!({
            "peer_id": node.peer_id().to_string(),
            "name": name,
            "admin": node.admin_addr(),
        }))
    } else {
        output.line(format!(
            "node {name} ({}), admin at {}",
            node.peer_id(),
            node.admin_addr()
        ))
    };
    match told {
        // Whoever started us may not care to read on; the node works all the same.
        Ok(()) | Err(Failure::OutputClosed) => (),
        Err(failure) => return Err(failure),
    }
    tokio::select! {
        biased;
        interrupt = interrupts.next() => match interrupt {
            Interrupt::Keyboard => Err(Failure::Interrupted),
            Interrupt::Terminate | Interrupt::HangUp => Ok(()),
        },
        ended = node.stopped() => ended.map_err(|error| Failure::new("keep the node running", error)),
    }
}
