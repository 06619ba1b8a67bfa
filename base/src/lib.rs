//! The shared nouns of Lapwing: who takes part, what a round is, how large and how fast things are.
//!
//! No runtime, no I/O, no clock. Every other room imports this one, and this one imports none of them:
//! what two rooms must both understand (a roster, a round's plan, a message class) is defined here once.
//! Everything that enters the log is free of floats, so that applying it is the same on every machine.

mod algorithm;
mod bandwidths;
mod chain;
mod class;
mod id;
mod job;
mod key;
mod nearest;
mod roster;
mod round;
mod row;
mod trust;
mod units;

pub use algorithm::{Algorithm, Meeting, Planner, Privacy, Tuning, Values};
pub use bandwidths::{Bandwidths, LinkSpeed};
pub use chain::{chain, innermost};
pub use class::{CLASSES, Class};
pub use id::{ClusterId, JobId, NodeId, ParseClusterIdError};
pub use job::{Evaluation, JobPhase, JobSpec, JobView, Manifest, ROUNDS_KEPT, Report, RoundRecord};
pub use key::public_key;
pub use libp2p_identity::{Keypair, PeerId, PublicKey};
pub use multiaddr::{Multiaddr, Protocol};
pub use nearest::nearest;
pub use roster::{Member, MemberState, Role, Roster};
pub use round::{NodeOutcome, Pair, RoundKind, RoundOutcome, RoundPlan, RoundReport};
pub use row::Row;
pub use trust::{Garbage, Quarantine, Refusal, Trust};
pub use units::{Bandwidth, ByteSize, LogIndex, ParseUnitError, Ppm, Round, Term};
