//! A lab: an internet of its own, to which hosts and routers are plugged.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::draws::Draws;
use crate::error::LabError;
use crate::host::{self, Host};
use crate::link::Link;
use crate::namespace::Namespace;
use crate::nat::Nat;
use crate::node::{Behind, Delegation, Node, Place, Routed};
use crate::probe::{self, Found, ProbeError};
use crate::reflectors::Reflectors;
use crate::router::{self, Router};
use crate::tool;
use crate::warden::{Warden, sweep};

/// Hosts and routers of a lab: beyond that, finding the processes of a dead one takes longer than it should.
const NODES_MAX: usize = 4_000;

/// Public hosts and routers, and changes of their addresses: a /24 each of one /16.
const PUBLIC_MAX: u16 = 255;

/// Routers: the third byte of what is behind them.
const ROUTERS_MAX: u8 = 254;

/// Hosts, routers and links that exist for as long as this value does. Labs of one machine do not see one another.
///
/// Everything goes when it is dropped, also by a panic, and shortly after its process was killed: processes that
/// were started on its hosts included.
#[derive(Debug)]
#[must_use = "a lab ends when it is dropped"]
pub struct Lab {
    inner: Arc<Inner>,
}

/// What a lab is made with.
#[derive(Clone, Debug)]
#[must_use = "`start` makes the lab"]
pub struct LabBuilder {
    seed: u64,
    prefix4: Ipv4Addr,
    prefix6: Ipv6Addr,
}

impl LabBuilder {
    /// Decides every loss, jitter and hashed port. Default: 1.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Where public addresses come from: the /15 of an IPv4 address and the /32 of an IPv6 one. Default: 198.18.0.0
    /// (RFC 2544) and 2001:db8:: (RFC 3849), which are nobody's.
    ///
    /// Programs that tell global addresses from others see that those are not global. For such a program choose a
    /// range that is; nothing leaves the lab.
    pub fn addresses(self, prefix4: Ipv4Addr, prefix6: Ipv6Addr) -> Self {
        Self {
            prefix4: Ipv4Addr::from_bits(prefix4.to_bits() & 0xFFFE_0000),
            prefix6: Ipv6Addr::from_bits(prefix6.to_bits() & (0xFFFF_FFFF << 96)),
            ..self
        }
    }

    /// Makes the lab: an internet with nobody in it.
    ///
    /// # Errors
    ///
    /// If the caller is not root, a program is missing, or the system refuses.
    pub fn start(self) -> Result<Lab, LabError> {
        tool::check()?;
        sweep();
        let mut warden = Warden::start()?;
        let core = Arc::new(Namespace::create()?);
        warden.watch(core.inode())?;
        prepare(&core)?;
        core.ip("link set dev lo up\n")?;
        core.set(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        let Self {
            seed,
            prefix4,
            prefix6,
        } = self;
        let state = State {
            warden: Some(warden),
            spaces: vec![core.clone()],
            links: Vec::new(),
            names: BTreeSet::new(),
            public: 0,
            routers: 0,
        };
        let (state, reflectors) = (Mutex::new(state), Mutex::new(None));
        Ok(Lab {
            inner: Arc::new(Inner {
                seed,
                prefix4,
                prefix6,
                core,
                state,
                reflectors,
            }),
        })
    }
}

impl Lab {
    /// A lab with the default seed and addresses.
    ///
    /// # Errors
    ///
    /// If the caller is not root, a program is missing, or the system refuses.
    pub fn new() -> Result<Self, LabError> {
        Self::builder().start()
    }

    /// Chooses seed and addresses.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            seed: 1,
            prefix4: Ipv4Addr::new(198, 18, 0, 0),
            prefix6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
        }
    }

    /// Plugs a host into the internet, with a public address in a network of its own.
    ///
    /// # Errors
    ///
    /// If the name is taken, there is no room, or the system refuses.
    pub fn public_host(&self, name: &str) -> Result<Host, LabError> {
        self.inner.public_host(name)
    }

    /// Plugs a router into the internet, with a public address in a network of its own.
    ///
    /// # Errors
    ///
    /// If the name is taken, there is no room, the kind cannot be laid out, or the system refuses.
    pub fn router(&self, name: &str, nat: Nat) -> Result<Router, LabError> {
        Router::create(&self.inner, name, Behind::Internet, nat)
    }

    /// Finds out with plain UDP, over IPv4, what is between a host and the internet. Takes about half a second and
    /// six round trips.
    ///
    /// # Errors
    ///
    /// If the lab has ended or the system refuses; that nothing comes back is a finding and no error.
    pub fn classify(&self, host: &Host) -> Result<Found, ProbeError> {
        probe::classify(host, self.inner.reflectors()?.targets4())
    }

    /// The same over IPv6.
    ///
    /// # Errors
    ///
    /// If the lab has ended or the system refuses; that nothing comes back is a finding and no error.
    pub fn classify_ipv6(&self, host: &Host) -> Result<Found, ProbeError> {
        probe::classify(host, self.inner.reflectors()?.targets6())
    }

    /// Measures every shaped link: see [`Link::verify`].
    ///
    /// # Errors
    ///
    /// [`LabError::NotAsAsked`] for the first that is not as it was asked for.
    pub fn verify(&self) -> Result<(), LabError> {
        let links = self.inner.state().links.clone();
        links.iter().try_for_each(Link::verify)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.inner.end();
    }
}

/// What the handles of a lab share.
#[derive(Debug)]
pub(crate) struct Inner {
    seed: u64,
    prefix4: Ipv4Addr,
    prefix6: Ipv6Addr,
    /// The internet: one router between all public networks.
    pub(crate) core: Arc<Namespace>,
    state: Mutex<State>,
    /// Made when first asked for.
    reflectors: Mutex<Option<Arc<Reflectors>>>,
}

#[derive(Debug)]
struct State {
    /// `None` once the lab has ended.
    warden: Option<Warden>,
    spaces: Vec<Arc<Namespace>>,
    links: Vec<Link>,
    names: BTreeSet<String>,
    public: u16,
    routers: u8,
}

impl Inner {
    pub(crate) fn public_host(self: &Arc<Self>, name: &str) -> Result<Host, LabError> {
        let place = self.public_place()?;
        let node = Node::create(
            self,
            name,
            Behind::Internet,
            place,
            host::DEVICE,
            Routed::default(),
        )?;
        Ok(Host { node })
    }

    /// Makes the namespace of another node, and gives it a number.
    pub(crate) fn add(&self, name: &str) -> Result<(u16, Arc<Namespace>), LabError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 32 || !name.chars().all(fine) {
            return Err(LabError::BadName(name.into()));
        }
        let space = Arc::new(Namespace::create()?);
        let mut state = self.state();
        let number = state.spaces.len();
        if number > NODES_MAX {
            return Err(LabError::Full {
                what: "node",
                max: NODES_MAX,
            });
        }
        if !state.names.insert(name.into()) {
            return Err(LabError::Taken(name.into()));
        }
        state
            .warden
            .as_mut()
            .ok_or(LabError::Ended)?
            .watch(space.inode())?;
        state.spaces.push(space.clone());
        drop(state);
        prepare(&space)?;
        Ok((number as u16, space))
    }

    /// Remembers a link, to stop it at the end.
    pub(crate) fn keep(&self, link: Link) -> Result<(), LabError> {
        let mut state = self.state();
        if state.warden.is_none() {
            return Err(LabError::Ended);
        }
        state.links.push(link);
        Ok(())
    }

    /// The next public network: its /24 and its /48.
    pub(crate) fn public_place(&self) -> Result<Place, LabError> {
        let mut state = self.state();
        if state.public == PUBLIC_MAX {
            return Err(LabError::Full {
                what: "public address",
                max: PUBLIC_MAX.into(),
            });
        }
        state.public += 1;
        let number = state.public;
        let [first, second, _, _] = self.prefix4.octets();
        let in4 = |last| Ipv4Addr::new(first, second, number as u8, last);
        let base = Ipv6Addr::from_bits(self.prefix6.to_bits() | u128::from(number) << 80);
        let in6 = |last: u128| Ipv6Addr::from_bits(base.to_bits() | last);
        Ok(Place {
            address4: in4(2),
            gateway4: in4(1),
            ipv6: Some((in6(2), in6(1))),
            delegated: Some(Delegation { base, bits: 48 }),
        })
    }

    pub(crate) fn number_router(&self) -> Result<u8, LabError> {
        let mut state = self.state();
        if state.routers == ROUTERS_MAX {
            return Err(LabError::Full {
                what: "router",
                max: ROUTERS_MAX.into(),
            });
        }
        state.routers += 1;
        Ok(state.routers)
    }

    /// What is behind a router: the second half of the public range where nothing is translated.
    pub(crate) fn lan(&self, nat: &Nat, number: u8) -> Ipv4Addr {
        let [first, second, _, _] = self.prefix4.octets();
        router::lan(nat, number, Ipv4Addr::new(first, second | 1, number, 0))
    }

    pub(crate) fn seed_of(&self, part: u16) -> u64 {
        Draws::seed_of(self.seed, part.into())
    }

    pub(crate) fn mark(&self) -> Result<String, LabError> {
        Ok(self
            .state()
            .warden
            .as_ref()
            .ok_or(LabError::Ended)?
            .mark()
            .to_owned())
    }

    fn reflectors(self: &Arc<Self>) -> Result<Arc<Reflectors>, LabError> {
        let mut reflectors = self.reflectors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reflectors) = &*reflectors {
            return Ok(reflectors.clone());
        }
        let made = Arc::new(Reflectors::start(self)?);
        *reflectors = Some(made.clone());
        Ok(made)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills what runs, stops the links, and lets go of the namespaces, in this order: a process whose network goes
    /// first would see it.
    fn end(&self) {
        let (warden, spaces, links) = {
            let mut state = self.state();
            let (spaces, links) = (
                std::mem::take(&mut state.spaces),
                std::mem::take(&mut state.links),
            );
            (state.warden.take(), spaces, links)
        };
        if let Some(warden) = &warden {
            warden.clear();
        }
        // Taken first: the reflectors' own handles end with them, and they hold on to this value.
        let reflectors = self
            .reflectors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(reflectors);
        links.iter().for_each(Link::close);
        spaces.iter().for_each(|space| space.close());
        drop(warden);
    }
}

/// What every namespace starts with: no waiting for duplicate addresses, no surprises from advertisements, no check of
/// where a packet came from, which a change of address would trip over; and a hardware address that is asked for ten
/// times a second and for ten seconds, so that a lost question costs 100 ms, and a slow link gets to answer.
fn prepare(space: &Namespace) -> Result<(), LabError> {
    space.set(&[
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/neigh/default/retrans_time_ms", "100"),
        ("ipv4/neigh/default/mcast_solicit", "100"),
        ("ipv4/neigh/default/ucast_solicit", "50"),
        ("ipv6/neigh/default/retrans_time_ms", "100"),
        ("ipv6/neigh/default/mcast_solicit", "100"),
        ("ipv6/neigh/default/ucast_solicit", "50"),
    ])
}
