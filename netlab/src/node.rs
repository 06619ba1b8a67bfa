//! What hosts and routers have in common: a namespace, an uplink, addresses, and what they are behind.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::LabError;
use crate::lab::Inner;
use crate::link::{Ends, Link};
use crate::namespace::Namespace;
use crate::router::Router;
use crate::warden::MARK;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) lab: Arc<Inner>,
    pub(crate) name: String,
    pub(crate) space: Arc<Namespace>,
    pub(crate) link: Link,
    pub(crate) behind: Behind,
    place: Mutex<Place>,
}

/// What a node is plugged into.
#[derive(Clone, Debug)]
pub(crate) enum Behind {
    /// The internet itself.
    Internet,
    /// The switch of a router.
    Router(Router),
}

/// Where a node is in the plan of addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) address4: Ipv4Addr,
    pub(crate) gateway4: Ipv4Addr,
    /// The node's address and its gateway's.
    pub(crate) ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// What the node may give to those behind it.
    pub(crate) delegated: Option<Delegation>,
}

/// A range of IPv6 addresses that a router gives to its hosts and to routers behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delegation {
    pub(crate) base: Ipv6Addr,
    pub(crate) bits: u8,
}

impl Delegation {
    /// The /64 of the router's own hosts, by its first address.
    pub(crate) fn lan(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.base.to_bits() | 1 << 64)
    }

    /// What a router behind this one gets: four bits longer, and never with the hosts' /64 in it. `None` when there
    /// is no room.
    pub(crate) fn part(self, number: u8) -> Option<Self> {
        let bits = self.bits + 4;
        let fits = bits <= 60 && (1..=15).contains(&number);
        fits.then(|| Self {
            base: Ipv6Addr::from_bits(self.base.to_bits() | u128::from(number) << (128 - bits)),
            bits,
        })
    }
}

/// What a node brings with it that the one above has to route to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Routed {
    pub(crate) ipv6: Option<Delegation>,
    /// A /24, by its first address.
    pub(crate) ipv4: Option<Ipv4Addr>,
}

impl Place {
    /// What `ip` is told of the two ends of the node's uplink, and which device the one above reaches it by.
    pub(crate) fn ends(&self, behind: &Behind, device: &str, number: u16, routed: Routed) -> Ends {
        let Self {
            address4,
            gateway4,
            ipv6,
            ..
        } = *self;
        let mut lower = format!(
            "addr replace {address4}/24 dev {device}\nroute replace default via {gateway4} dev {device}\n"
        );
        let (mut upper, above) = match behind {
            Behind::Internet => (
                format!("addr replace {gateway4}/24 dev p{number}\n"),
                format!("p{number}"),
            ),
            Behind::Router(_) => (format!("link set dev p{number} master lan\n"), "lan".into()),
        };
        if let Some((address6, gateway6)) = ipv6 {
            lower += &format!("addr replace {address6}/64 dev {device} nodad\n");
            lower += &format!("route replace ::/0 via {gateway6} dev {device}\n");
            if matches!(behind, Behind::Internet) {
                upper += &format!("addr replace {gateway6}/64 dev p{number} nodad\n");
            }
            if let Some(Delegation { base, bits }) = routed.ipv6 {
                upper += &format!("route replace {base}/{bits} via {address6} dev {above}\n");
            }
        }
        if let Some(lan) = routed.ipv4 {
            upper += &format!("route replace {lan}/24 via {address4} dev {above}\n");
        }
        Ends {
            lower,
            upper,
            gateway: gateway4,
        }
    }
}

impl Node {
    /// Makes the namespace of a node and plugs it in.
    pub(crate) fn create(
        lab: &Arc<Inner>,
        name: &str,
        behind: Behind,
        place: Place,
        device: &'static str,
        routed: Routed,
    ) -> Result<Arc<Self>, LabError> {
        let (number, space) = lab.add(name)?;
        let ends = place.ends(&behind, device, number, routed);
        let upper = match &behind {
            Behind::Internet => &lab.core,
            Behind::Router(router) => &router.node.space,
        };
        let link = Link::lay(name, number, lab.seed_of(number), (&space, device), upper, ends)?;
        lab.keep(link.clone())?;
        let place = Mutex::new(place);
        Ok(Arc::new(Self {
            lab: lab.clone(),
            name: name.into(),
            space,
            link,
            behind,
            place,
        }))
    }

    pub(crate) fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.space.path()?))
            .arg("--")
            .arg(program);
        command.env(MARK, self.lab.mark()?);
        Ok(command)
    }

    /// Gives the node another place under what it is behind.
    pub(crate) fn renumber(&self, device: &str, routed: Routed) -> Result<Ipv4Addr, LabError> {
        let mut place = self.place();
        let delegated = place.delegated;
        *place = match &self.behind {
            Behind::Internet => self.lab.public_place()?,
            Behind::Router(router) => router.inside_place()?,
        };
        // What is behind a router keeps its IPv6 addresses: only the way to it changes.
        place.delegated = delegated;
        self.link
            .renumber(place.ends(&self.behind, device, self.link.number(), routed))?;
        Ok(place.address4)
    }

    /// Every address by which somebody may reach this node: its own, and those of the routers that translate it.
    pub(crate) fn reachable_at(&self) -> Vec<IpAddr> {
        let place = *self.place();
        let mut addresses = vec![IpAddr::V4(place.address4)];
        addresses.extend(place.ipv6.map(|(address, _)| IpAddr::V6(address)));
        let mut behind = self.behind.clone();
        while let Behind::Router(router) = behind {
            if router.translates() {
                addresses.push(IpAddr::V4(router.node.place().address4));
            }
            behind = router.node.behind.clone();
        }
        addresses
    }
}
