//! How nodes behind NATs reach each other: what stands before them, who can be reached by whom, and how a direct
//! path is found and kept. Cores only: the driver feeds them what it sees and does what they say.
//!
//! From what others see ([`Observations`]) and who gets through ([`Reachability`], [`Witness`]) follow a node's
//! [`NatType`] and its role. [`Beacons`] have mains see it over the family that no connection uses, and [`Lookouts`]
//! are how mains do. A home keeps [`Reservations`] at relays. For one peer, the [`Ladder`] says which path to
//! try next; over a relayed path, [`Punches`] finds a direct one.

mod beacons;
mod candidate_table;
mod contacts;
mod dial_order;
mod ladder;
mod lookouts;
mod nat;
mod observations;
mod probe;
mod punch;
mod punch_action;
mod punch_attempt;
mod punch_history;
mod punch_message;
mod punches;
mod reachability;
mod relayed_because;
mod reservations;
mod rung;
mod scope;
mod sighting;
mod strategy;
mod surroundings;
mod udp_verdicts;
mod vetting;
mod whereabouts;
mod witness;

#[cfg(test)]
mod hour_lab;
#[cfg(test)]
mod punch_lab;

pub use beacons::{BeaconAction, Beaconed, Beacons};
pub use candidate_table::{CandidateKind, CandidateOutcome, CandidateRow, CandidateSource, CandidateTable};
pub use contacts::{Contacted, Contacts};
pub use ladder::{DialId, Ladder, LadderAction};
pub use lookouts::Lookouts;
pub use nat::{Filtering, Mapping, NatType, Prospect, Udp};
pub use observations::{Change, Family, Observation, Observations, PortSpan, SocketId};
pub use probe::{Probe, ProbeError, ProbeId, ProbeKey, ProbeKind, Side, Token};
pub use punch::{Chosen, Datagram, Probed, ProbedOutcome, ProbedSource};
pub use punch_action::{PunchAction, PunchError};
pub use punch_message::{Presence, PunchMessage};
pub use punches::{Here, Punches, There};
pub use reachability::{ReachAction, Reachability, Standing};
pub use relayed_because::RelayedBecause;
pub use reservations::{Reservation, ReservationAction, ReservationRefusal, Reservations};
pub use rung::Rung;
pub use scope::Scope;
pub use sighting::Sighting;
pub use strategy::Strategy;
pub use surroundings::Surroundings;
pub use udp_verdicts::{NetworkPrint, UdpVerdicts, UdpVerdictsError};
pub use vetting::Vetting;
pub use whereabouts::Whereabouts;
pub use witness::{Stance, Witness, WitnessAction, WitnessMessage, WitnessRefusal};
