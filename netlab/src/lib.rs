//! Lays out hosts, routers with every kind of NAT, and shaped links on one Linux machine, for tests of programs that
//! need several.
//!
//! ```no_run
//! use std::time::Duration;
//! use lapwing_netlab::{Lab, Nat, Shape};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lab = Lab::builder().seed(7).start()?;
//! let relay = lab.public_host("relay")?;
//! let home = lab.router("home", Nat::symmetric())?;
//! let alice = home.host("alice")?;
//! // 20 Mbit/s, 25 ms each way, 200 ms of queue; measured before it returns.
//! alice.link().shape(Shape::mbit(20).with_delay(Duration::from_millis(25)).with_queue(Duration::from_millis(200)))?;
//!
//! let found = lab.classify(&alice)?;
//! assert!(found.is(&home.nat()), "{found}");
//! let ping = alice.command("ping")?.args(["-c", "1", &relay.ipv4().to_string()]).status()?;
//! let socket = relay.enter(|| std::net::UdpSocket::bind("0.0.0.0:4001"))??;
//! home.reboot()?;
//! # Ok(())
//! # }
//! ```
//!
//! It takes root and Linux with nftables and TAP devices, and the programs `ip`, `nft`, `conntrack` and `nsenter`; a
//! lab that cannot start says what is missing. Hosts are network namespaces without names, so that nothing of a lab
//! is on disk and labs run side by side. Delay, loss and rate are done by this process, since kernels without the
//! module for it accept such settings and ignore them: a lab's process must get its share of the machine, and every
//! shaped link is measured when it is made.
//!
//! It knows nothing of the programs that are tested with it.

mod draws;
mod error;
mod forwarder;
mod host;
mod lab;
mod link;
mod namespace;
mod nat;
mod node;
mod paths;
mod pipe;
mod probe;
mod reflectors;
mod router;
mod ruleset;
mod shape;
mod tool;
mod warden;

pub use error::LabError;
pub use forwarder::Way;
pub use host::Host;
pub use lab::{Lab, LabBuilder};
pub use link::Link;
pub use nat::{Egress, Filtering, Ipv6, Lan, Mapping, Nat, Ports, Sequence};
pub use pipe::Counters;
pub use probe::{Found, FoundMapping, ProbeError};
pub use router::Router;
pub use shape::{Queue, Rate, RateError, Shape};
pub use warden::sweep;
