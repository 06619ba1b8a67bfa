//! Simulates a job: the cores of a real run, n virtual nodes, real training, virtual time.
//!
//! Plans, masks, batches, methods and encodings are those of nodes in a cluster; what is missing is the network, the
//! log and the clock. How long a round takes follows from the bytes of its encoded messages and the speeds of the
//! links (`clock.rs`). The same setting gives the same bits, on any number of threads.

pub mod averaging;
#[cfg(feature = "driver")]
mod clock;
#[cfg(feature = "driver")]
mod crew;
#[cfg(feature = "driver")]
mod engine;
mod event;
mod network;
#[cfg(feature = "driver")]
mod node;
mod poison;
#[cfg(feature = "driver")]
mod run;
mod setting;

pub use self::event::{Event, ParseEventError};
pub use self::network::{MatrixError, NODES_MAX, Network, links};
pub use self::poison::Poison;
pub use self::setting::{Every, Setting, epochs_of_rounds, rounds_of_epochs};

#[cfg(feature = "driver")]
pub use self::engine::{SimulateError, Simulation};
#[cfg(feature = "driver")]
pub use self::run::{Ended, Point, Progress, Run};
