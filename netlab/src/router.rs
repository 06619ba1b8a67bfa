//! A router of the lab, with the NAT and the firewall that were asked for.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::draws::Draws;
use crate::error::LabError;
use crate::host::{self, Host};
use crate::lab::Inner;
use crate::link::Link;
use crate::nat::{Egress, Ipv6, Lan, Mapping, Nat};
use crate::node::{Behind, Delegation, Node, Place, Routed};
use crate::ruleset::ruleset;
use crate::tool;

/// Addresses of a router's /24 that are given away: .10 to .250.
const INSIDE_MAX: u8 = 241;

/// Routers with IPv6 behind one router: what four bits tell apart beside the router's own hosts.
const NESTED_MAX: u8 = 15;

/// A router: a namespace with a device `wan` to the outside and a switch `lan` that its hosts are plugged into. Cheap
/// to clone.
#[derive(Clone, Debug)]
pub struct Router {
    pub(crate) node: Arc<Node>,
    state: Arc<Mutex<State>>,
    /// The first address of the /24 behind it.
    lan: Ipv4Addr,
    /// What the seeds of its boots are drawn from.
    seed: u64,
}

#[derive(Debug)]
struct State {
    nat: Nat,
    boots: u64,
    inside: u8,
    nested: u8,
}

impl Router {
    pub(crate) fn create(lab: &Arc<Inner>, name: &str, behind: Behind, nat: Nat) -> Result<Self, LabError> {
        nat.check()?;
        let number = lab.number_router()?;
        let mut place = match &behind {
            Behind::Internet => lab.public_place()?,
            Behind::Router(router) => router.inside_place()?,
        };
        if let Behind::Router(router) = &behind {
            place.delegated = router.delegate()?;
        }
        if nat.ipv6 == Ipv6::Off {
            place.delegated = None;
        }
        let lan = lab.lan(&nat, number);
        let node = Node::create(lab, name, behind, place, "wan", routed(&nat, &place, lan))?;
        let mut lines = String::from("link add lan type bridge stp_state 0 mcast_snooping 0\n");
        lines += &format!("link set dev lan address 02:6c:62:ff:00:{number:02x} up\n");
        lines += &format!("addr add {}/24 dev lan\n", first(lan));
        if let Some(delegated) = place.delegated {
            lines += &format!("addr add {}/64 dev lan nodad\n", first6(delegated));
        }
        node.space.set(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("bridge/bridge-nf-call-iptables", "0"),
            ("bridge/bridge-nf-call-ip6tables", "0"),
        ])?;
        node.space.ip(&lines)?;
        // Apart from the seeds of links, whose numbers are below.
        let seed = lab.seed_of(u16::from(number) | 0x8000);
        let state = State {
            nat,
            boots: 0,
            inside: 0,
            nested: 0,
        };
        let router = Self {
            node,
            state: Arc::new(Mutex::new(state)),
            lan,
            seed,
        };
        router.load(&router.state())?;
        Ok(router)
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// Its address on the outside now.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.node.place().address4
    }

    /// Its IPv6 address on the outside now.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.node.place().ipv6.map(|(address, _)| address)
    }

    /// Its uplink, which everybody behind it shares.
    pub fn link(&self) -> &Link {
        &self.node.link
    }

    /// What it does with packets now.
    pub fn nat(&self) -> Nat {
        self.state().nat.clone()
    }

    /// Plugs a host into its switch.
    ///
    /// # Errors
    ///
    /// If the name is taken, there is no room, or the system refuses.
    pub fn host(&self, name: &str) -> Result<Host, LabError> {
        let place = self.inside_place()?;
        let behind = Behind::Router(self.clone());
        Ok(Host {
            node: Node::create(
                &self.node.lab,
                name,
                behind,
                place,
                host::DEVICE,
                Routed::default(),
            )?,
        })
    }

    /// Plugs another router into its switch: double NAT.
    ///
    /// # Errors
    ///
    /// If the name is taken, there is no room, the kind cannot be laid out, or the system refuses.
    pub fn router(&self, name: &str, nat: Nat) -> Result<Self, LabError> {
        Self::create(&self.node.lab, name, Behind::Router(self.clone()), nat)
    }

    /// Makes it another kind of router. Flows that it knows go on as they are, unless what they send is forbidden
    /// now. The addresses behind it do not change.
    ///
    /// # Errors
    ///
    /// If the kind cannot be laid out, or would change the addresses behind the router, or the system refuses.
    pub fn set_nat(&self, nat: Nat) -> Result<(), LabError> {
        nat.check()?;
        let mut state = self.state();
        let moves = nat.lan != state.nat.lan
            || (nat.mapping == Mapping::None) != (state.nat.mapping == Mapping::None)
            || (nat.ipv6 == Ipv6::Off) != (state.nat.ipv6 == Ipv6::Off);
        if moves {
            return Err(LabError::Unsupported(
                "the addresses behind a router stay: lay out another router",
            ));
        }
        state.nat = nat;
        self.load(&state)
    }

    /// Changes what those behind it may send, also in flows that exist.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn restrict(&self, egress: Egress) -> Result<(), LabError> {
        self.set_nat(self.nat().with_egress(egress))
    }

    /// Forgets every flow and mapping, and draws other ports from now on (which shows where ports are translated).
    /// To be without a link for a while as well, [`Link::unplug`] first and [`Link::plug`] later.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn reboot(&self) -> Result<(), LabError> {
        let mut state = self.state();
        state.boots += 1;
        self.load(&state)?;
        self.forget()
    }

    /// Gets another address on the outside, as after a night's reconnection; every IPv4 flow is forgotten. Returns the
    /// address. What is behind it keeps its addresses, IPv6 included.
    ///
    /// # Errors
    ///
    /// If there are no more, or the system refuses.
    pub fn renumber(&self) -> Result<Ipv4Addr, LabError> {
        let state = self.state();
        let place = *self.node.place();
        let address = self.node.renumber("wan", routed(&state.nat, &place, self.lan))?;
        self.load(&state)?;
        self.forget()?;
        Ok(address)
    }

    /// Drops silently what the router and those behind it send to a host; see [`Host::block`].
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn block(&self, to: &Host) -> Result<(), LabError> {
        self.node.link.block(&to.node.reachable_at())
    }

    /// Ends [`Self::block`].
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn unblock(&self, to: &Host) -> Result<(), LabError> {
        self.node.link.unblock(&to.node.reachable_at())
    }

    pub(crate) fn translates(&self) -> bool {
        self.state().nat.mapping != Mapping::None
    }

    /// The next free place on its switch.
    pub(crate) fn inside_place(&self) -> Result<Place, LabError> {
        let mut state = self.state();
        if state.inside == INSIDE_MAX {
            return Err(LabError::Full {
                what: "node behind one router",
                max: INSIDE_MAX.into(),
            });
        }
        let last = 10 + state.inside;
        state.inside += 1;
        let ipv6 = self.node.place().delegated.map(|delegated| {
            (
                Ipv6Addr::from_bits(delegated.lan().to_bits() | u128::from(last)),
                first6(delegated),
            )
        });
        let address4 = Ipv4Addr::from_bits(self.lan.to_bits() | u32::from(last));
        Ok(Place {
            address4,
            gateway4: first(self.lan),
            ipv6,
            delegated: None,
        })
    }

    /// A part of its IPv6 addresses for a router behind it.
    fn delegate(&self) -> Result<Option<Delegation>, LabError> {
        let Some(delegated) = self.node.place().delegated else {
            return Ok(None);
        };
        let mut state = self.state();
        if state.nested == NESTED_MAX {
            return Err(LabError::Full {
                what: "router behind one router",
                max: NESTED_MAX.into(),
            });
        }
        state.nested += 1;
        Ok(delegated.part(state.nested))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, state: &State) -> Result<(), LabError> {
        let seed = Draws::seed_of(self.seed, state.boots) as u32;
        self.node.space.nft(&ruleset(&state.nat, self.ipv4(), seed))?;
        let lifetime = state.nat.lifetime.as_secs().to_string();
        self.node.space.set(&[
            ("netfilter/nf_conntrack_udp_timeout", &lifetime),
            ("netfilter/nf_conntrack_udp_timeout_stream", &lifetime),
        ])
    }

    fn forget(&self) -> Result<(), LabError> {
        self.node.space.enter(|| tool::feed("conntrack", &["-F"], ""))?
    }
}

/// What the one above has to route to a router.
fn routed(nat: &Nat, place: &Place, lan: Ipv4Addr) -> Routed {
    Routed {
        ipv6: place.delegated,
        ipv4: (nat.mapping == Mapping::None).then_some(lan),
    }
}

fn first(lan: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(lan.to_bits() | 1)
}

fn first6(delegated: Delegation) -> Ipv6Addr {
    Ipv6Addr::from_bits(delegated.lan().to_bits() | 1)
}

/// The /24 behind the router with this number, by its first address.
pub(crate) fn lan(nat: &Nat, number: u8, public: Ipv4Addr) -> Ipv4Addr {
    match nat.lan {
        Lan::Own if nat.mapping == Mapping::None => public,
        Lan::Own => Ipv4Addr::new(192, 168, number, 0),
        Lan::Carrier => Ipv4Addr::new(100, 64, number, 0),
        Lan::Prefix(address) => Ipv4Addr::from_bits(address.to_bits() & 0xFFFF_FF00),
    }
}
