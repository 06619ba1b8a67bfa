//! Who offers what, and by which way: what this node has heard, and what it passes on. Sends nothing itself.
//!
//! Every node's newest announcement is kept once, and for each neighbour that has passed it on the way that it came (as in
//! BGP, RFC 4271: a way that a node is on already is none). A home tells the mains that it is connected with of itself; mains
//! tell each other of everybody. What a neighbour does not reach any more it says, and what nobody has refreshed expires.

use crate::announcement::{AnnouncementError, Forwarded, SignedAnnouncement, Stamp};
use crate::{
    Announcement, CallError, ErrorCode, Fit, NodeAddress, NodeName, Service, ServiceName, Unfit, Wanted,
};
use lapwing_base::{PeerId, Role};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What one node knows of the services of all.
#[derive(Debug)]
pub struct Registry {
    me: PeerId,
    role: Role,
    /// Mains that are all connected with each other.
    mesh: BTreeSet<PeerId>,
    /// With whom there is a connection, and what they are.
    neighbours: BTreeMap<PeerId, Role>,
    own: Option<(SignedAnnouncement, Announcement)>,
    origins: BTreeMap<PeerId, Origin>,
    /// Who was the first to claim a name, and is still known. Whoever has claimed it later has it with the first of its
    /// announcements that comes after the name is free.
    names: BTreeMap<NodeName, PeerId>,
    /// Who offers a service.
    services: BTreeMap<ServiceName, BTreeSet<PeerId>>,
    /// What is no newer than this is not heard again, until then.
    gone: BTreeMap<PeerId, Gone>,
}

/// What is known of one node.
#[derive(Debug)]
struct Origin {
    signed: SignedAnnouncement,
    announcement: Announcement,
    heard_at: Instant,
    /// By neighbour.
    ways: BTreeMap<PeerId, Way>,
    /// Whom this node has told of it, and of which announcement and way.
    told: BTreeMap<PeerId, (Stamp, Vec<PeerId>)>,
}

#[derive(Clone, Debug)]
struct Way {
    /// From the origin to the neighbour.
    path: Vec<PeerId>,
    heard_at: Instant,
}

/// What neighbours tell each other.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Somebody offers this, and the sender reaches it.
    Announced(Box<Forwarded>),
    /// The sender does not reach this node any more.
    Lost {
        /// Which.
        origin: PeerId,
    },
}

impl Message {
    /// About how many bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Announced(forwarded) => forwarded.bytes(),
            Self::Lost { .. } => 64,
        }
    }

    /// Whom it is about, as far as it says; `None` where that makes no sense.
    pub fn origin(&self) -> Option<PeerId> {
        match self {
            Self::Announced(forwarded) => forwarded.path.first().copied(),
            Self::Lost { origin } => Some(*origin),
        }
    }
}

/// A message for a neighbour.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub struct ToSend {
    /// To whom.
    pub to: PeerId,
    /// What.
    pub message: Message,
}

/// What came of an announcement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// It is what its origin offers now.
    News,
    /// It was known, and the way may not have been.
    Known,
    /// There is a newer one, or its origin has gone since.
    Stale,
}

/// An announcement was not kept.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HearError {
    /// It is none.
    #[error(transparent)]
    Announcement(#[from] AnnouncementError),
    /// A home speaks for itself only.
    #[error("a home has passed on what another node announces")]
    NotAMain,
    /// There are too many nodes.
    #[error("{} nodes are known; another one is not kept", Registry::ORIGINS_MAX)]
    Full,
}

/// A service of some node, and how a call gets there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Instance<'a> {
    /// Whose it is.
    pub origin: PeerId,
    /// What it is.
    pub service: &'a Service,
    /// Links between here and there; none for this node's own.
    pub hops: usize,
    /// As of [`Registry::is_local`].
    pub is_local: bool,
}

/// A node that is not there any more.
#[derive(Clone, Copy, Debug)]
struct Gone {
    /// The last that was heard of it.
    stamp: Stamp,
    /// So long a late announcement is recognised.
    until: Instant,
    /// Whether it has said itself that it goes, and was not just silent.
    has_said_so: bool,
}

impl Registry {
    /// How many nodes are known at most: a thousand homes on each of fifty mains.
    pub const ORIGINS_MAX: usize = 65_536;

    /// What was not refreshed for so long is not there any more.
    pub const TTL: Duration = Duration::from_secs(600);

    /// How often a node announces itself again: two announcements may be lost.
    pub const REFRESH: Duration = Duration::from_secs(200);

    /// So long a late announcement of a node that has gone is recognised.
    const GONE_FOR: Duration = Duration::from_secs(1_200);

    /// Nobody is known yet.
    pub fn new(me: PeerId, role: Role) -> Self {
        Self {
            me,
            role,
            mesh: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            own: None,
            origins: BTreeMap::new(),
            names: BTreeMap::new(),
            services: BTreeMap::new(),
            gone: BTreeMap::new(),
        }
    }

    /// What this node is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// This node is something else from now on. Its neighbours do not know yet: sessions with them are to begin anew.
    pub fn set_role(&mut self, role: Role) {
        self.role = role;
    }

    /// These mains are all connected with each other, as those of a cluster are: what one of them says is not told to another,
    /// which has heard it from the same. In a cluster of n mains everybody would otherwise hear everything n - 1 times. (As
    /// between the routers of one network: RFC 4456, section 1.)
    pub fn set_mesh(&mut self, mesh: BTreeSet<PeerId>) -> Vec<ToSend> {
        if self.mesh == mesh {
            return Vec::new();
        }
        self.mesh = mesh;
        let ids: Vec<PeerId> = self.origins.keys().copied().collect();
        ids.into_iter().flat_map(|id| self.tell(id)).collect()
    }

    /// This node offers this from now on.
    ///
    /// # Errors
    /// When it is not this node's, or others would not take it.
    pub fn announce(&mut self, signed: SignedAnnouncement) -> Result<Vec<ToSend>, AnnouncementError> {
        let announcement = signed.open()?;
        if announcement.origin != self.me {
            return Err(AnnouncementError::Forged);
        }
        self.own = Some((signed, announcement));
        Ok(self
            .neighbours
            .keys()
            .filter_map(|to| self.own_for(*to))
            .collect())
    }

    /// A connection with a neighbour stands; says what it is to be told.
    pub fn on_connected(&mut self, peer: PeerId, role: Role) -> Vec<ToSend> {
        self.neighbours.insert(peer, role);
        let mut to_send: Vec<ToSend> = self.own_for(peer).into_iter().collect();
        if self.is_told(peer) {
            for (id, origin) in &mut self.origins {
                // Whoever comes back may have forgotten everything.
                origin.told.remove(&peer);
                to_send.extend(origin.tell(*id, self.me, &self.mesh, peer));
            }
        }
        to_send
    }

    /// The connection with a neighbour is gone, and with it every way over it.
    pub fn on_disconnected(&mut self, peer: PeerId) -> Vec<ToSend> {
        self.neighbours.remove(&peer);
        let origins: Vec<PeerId> = self.origins.keys().copied().collect();
        let mut to_send = Vec::new();
        for id in origins {
            if let Some(origin) = self.origins.get_mut(&id) {
                origin.told.remove(&peer);
                if origin.ways.remove(&peer).is_some() {
                    to_send.extend(self.tell(id));
                }
            }
        }
        to_send
    }

    /// A neighbour has said something.
    ///
    /// # Errors
    /// When it is not kept, and why.
    pub fn on_message(
        &mut self,
        from: PeerId,
        message: Message,
        now: Instant,
    ) -> Result<(Heard, Vec<ToSend>), HearError> {
        if !self.neighbours.contains_key(&from) {
            // It was on its way when the connection went.
            return Ok((Heard::Stale, Vec::new()));
        }
        match message {
            Message::Announced(forwarded) => self.hear(from, *forwarded, now),
            Message::Lost { origin } => Ok((Heard::Known, self.lose(origin, from))),
        }
    }

    /// What was not refreshed in time is dropped.
    pub fn on_tick(&mut self, now: Instant) -> Vec<ToSend> {
        self.gone.retain(|_, gone| now < gone.until);
        let ids: Vec<PeerId> = self.origins.keys().copied().collect();
        let mut to_send = Vec::new();
        for id in ids {
            let Some(origin) = self.origins.get_mut(&id) else {
                continue;
            };
            let (ways, stamp) = (origin.ways.len(), origin.announcement.stamp);
            // With it go the ways of which this node has heard later: neighbours do not refresh what its origin does not.
            let has_expired = now >= origin.heard_at + Self::TTL;
            origin
                .ways
                .retain(|_, way| !has_expired && now < way.heard_at + Self::TTL);
            if origin.ways.len() < ways {
                to_send.extend(self.tell(id));
            }
            if has_expired {
                self.forget(id, stamp, now, false);
            }
        }
        to_send
    }

    /// Those that offer what is wanted, can answer, and can be reached: where some have exactly the resources, only those.
    ///
    /// # Errors
    /// What keeps all of them from it.
    pub fn find(&self, wanted: &Wanted) -> Result<Vec<Instance<'_>>, CallError> {
        let name = &wanted.service;
        let others = self.services.get(name).into_iter().flatten();
        let others = others.filter_map(|id| Some((*id, self.origins.get(id)?)));
        let known = others.map(|(id, origin)| (id, &origin.announcement, origin.hops()));
        let own = self
            .own
            .iter()
            .map(|(_, announcement)| (self.me, announcement, Some(0)));
        let mut found: Vec<(Fit, Instance<'_>)> = Vec::new();
        let (mut unfit, mut is_unhealthy, mut is_offline) = (Unfit::Name, false, false);
        for (origin, announcement, hops) in own.chain(known) {
            let Some(service) = announcement.services.iter().find(|service| service.name == *name) else {
                continue;
            };
            match (service.fit(wanted), hops) {
                (Err(reason), _) => unfit = unfit.max(reason),
                (Ok(_), _) if !service.is_healthy => is_unhealthy = true,
                (Ok(_), None) => is_offline = true,
                (Ok(fit), Some(hops)) => found.push((
                    fit,
                    Instance {
                        origin,
                        service,
                        hops,
                        is_local: is_local(announcement, Some(hops)),
                    },
                )),
            }
        }
        if let Some(best) = found.iter().map(|(fit, _)| *fit).min() {
            let best = found.into_iter().filter(|(fit, _)| *fit == best);
            return Ok(best.map(|(_, instance)| instance).collect());
        }
        Err(if is_unhealthy {
            let said = format!("every instance of service `{name}` says that it cannot answer");
            CallError::new(ErrorCode::NoHealthyInstance, said)
        } else if is_offline {
            let said = format!("nobody who offers service `{name}` is connected");
            CallError::new(ErrorCode::NodeOffline, said)
        } else {
            unfit.error(wanted)
        })
    }

    /// Who is meant by an address: by peer id or by name.
    ///
    /// # Errors
    /// When nobody is known by it.
    pub fn locate(&self, address: &NodeAddress) -> Result<PeerId, CallError> {
        let unknown = |said: String| CallError::new(ErrorCode::NodeNotFound, said);
        let found = self
            .named(&address.node)
            .ok_or_else(|| unknown(format!("no node `{address}` is known")))?;
        let role = match self.origins.get(&found) {
            Some(origin) => origin.announcement.role,
            None => self.role,
        };
        if address.role.is_some_and(|wanted| wanted != role) {
            // Whoever names a main means what is behind it, and not the home of that name.
            let said = format!("no node `{address}` is known: `{}` is a {role}", address.node);
            return Err(unknown(said));
        }
        Ok(found)
    }

    /// The main that an address names, where another node is that main: it may know a home that is unknown here.
    pub fn main_of(&self, address: &NodeAddress) -> Option<PeerId> {
        let main = self.named(address.main.as_ref()?)?;
        (main != self.me).then_some(main)
    }

    fn named(&self, name: &NodeName) -> Option<PeerId> {
        if let Ok(peer) = name.as_str().parse() {
            let is_known = peer == self.me || self.origins.contains_key(&peer);
            return is_known.then_some(peer);
        }
        self.holder(name)
    }

    /// Who is called so: this node itself, or else the first that has claimed it and is still known.
    fn holder(&self, name: &NodeName) -> Option<PeerId> {
        let own = self.own().and_then(|own| own.name.as_ref());
        if own == Some(name) {
            return Some(self.me);
        }
        self.names.get(name).copied()
    }

    /// The name that another node wants, and who has it: that node itself, or another one.
    pub fn claim(&self, node: PeerId) -> Option<(&NodeName, PeerId)> {
        let name = self.origins.get(&node)?.announcement.name.as_ref()?;
        Some((name, self.holder(name)?))
    }

    /// What a node is called; `None` where it wants no name, or one that another node has.
    pub fn name(&self, node: PeerId) -> Option<&NodeName> {
        if node == self.me {
            return self.own()?.name.as_ref();
        }
        let (name, holder) = self.claim(node)?;
        (holder == node).then_some(name)
    }

    /// The neighbour over which a call to this node goes that has passed these: the nearest that leads past all of them.
    ///
    /// # Errors
    /// When there is no such way.
    pub fn next(&self, to: PeerId, passed: &[PeerId]) -> Result<PeerId, CallError> {
        let Some(origin) = self.origins.get(&to) else {
            // Whoever has chosen it may not have heard yet.
            let (code, said) = if self.gone.get(&to).is_some_and(|gone| gone.has_said_so) {
                (ErrorCode::NodeOffline, format!("node {to} has ended"))
            } else {
                (ErrorCode::NodeNotFound, format!("no node {to} is known"))
            };
            return Err(CallError::new(code, said));
        };
        let leads_past = |way: &&Way| !way.path.iter().any(|node| passed.contains(node));
        let ways = origin.ways.iter().filter(|(_, way)| leads_past(way));
        let nearest = ways.min_by_key(|(via, way)| (way.path.len(), **via));
        nearest.map(|(via, _)| *via).ok_or_else(|| {
            if origin.ways.is_empty() {
                CallError::new(ErrorCode::NodeOffline, format!("node {to} is not connected"))
            } else {
                // Whoever has passed it on knew of a way over this node. It is gone, and that is on its way to them.
                let said = format!(
                    "every way to node {to} leads back over one that the call has passed; there may be another in a \
                     moment"
                );
                CallError::new(ErrorCode::NodeOffline, said)
            }
        })
    }

    /// How a node is called, with the main by which a home is reached: the inverse of [`Registry::locate`].
    pub fn address(&self, node: PeerId) -> NodeAddress {
        let (role, main) = if node == self.me {
            let mains = self.neighbours.iter().filter(|(_, role)| **role == Role::Main);
            (Some(self.role), mains.map(|(main, _)| *main).next())
        } else {
            let origin = self.origins.get(&node);
            let role = origin.map(|origin| origin.announcement.role);
            // What came from the node itself came over this one first.
            let behind = |way: &Way| way.path.get(1).copied().unwrap_or(self.me);
            (role, origin.and_then(Origin::nearest).map(behind))
        };
        NodeAddress {
            node: self.name_or_id(node),
            role,
            main: main
                .filter(|_| role == Some(Role::Home))
                .map(|main| self.name_or_id(main)),
        }
    }

    /// The same of this node, or one of which was heard; of others there is nothing but the id.
    pub fn known_address(&self, node: PeerId) -> Option<NodeAddress> {
        let is_known = node == self.me || self.origins.contains_key(&node);
        is_known.then(|| self.address(node))
    }

    fn name_or_id(&self, node: PeerId) -> NodeName {
        self.name(node).cloned().unwrap_or_else(|| NodeName::from(node))
    }

    /// When a node's newest announcement was heard.
    pub fn heard_at(&self, node: PeerId) -> Option<Instant> {
        self.origins.get(&node).map(|origin| origin.heard_at)
    }

    /// Links between here and a node, by the nearest way; `None` where there is none.
    pub fn hops(&self, to: PeerId) -> Option<usize> {
        self.origins.get(&to).and_then(Origin::hops)
    }

    /// The same by the way over a neighbour.
    pub fn hops_by(&self, to: PeerId, neighbour: PeerId) -> Option<usize> {
        let way = self.origins.get(&to)?.ways.get(&neighbour)?;
        Some(way.path.len())
    }

    /// Whether what a node offers is local: it is this node, or a home of its. Another main is as near as a home, and no part of
    /// what is here.
    pub fn is_local(&self, node: PeerId) -> bool {
        let known = self.origins.get(&node);
        node == self.me || known.is_some_and(|known| is_local(&known.announcement, known.hops()))
    }

    /// Whether a node is known to offer a service.
    pub fn offers(&self, origin: PeerId, name: &ServiceName) -> bool {
        let known = self
            .services
            .get(name)
            .is_some_and(|offering| offering.contains(&origin));
        let has = |own: &Announcement| own.services.iter().any(|service| service.name == *name);
        known || (origin == self.me && self.own().is_some_and(has))
    }

    /// Whether a node is known to offer anything.
    pub fn has_services(&self, origin: PeerId) -> bool {
        self.origins
            .get(&origin)
            .is_some_and(|known| !known.announcement.services.is_empty())
    }

    /// What another node offers, as far as that is known.
    pub fn services_of(&self, origin: PeerId) -> &[Service] {
        let known = self.origins.get(&origin);
        known.map_or(&[], |known| known.announcement.services.as_slice())
    }

    /// What is known of others: their announcements, and how many links away they are; `None` for those out of reach.
    pub fn known(&self) -> impl Iterator<Item = (&Announcement, Option<usize>)> {
        let origins = self.origins.values();
        origins.map(|origin| (&origin.announcement, origin.hops()))
    }

    /// The same of a node and those behind it, in the order of their ids.
    pub fn known_from(&self, node: PeerId) -> impl Iterator<Item = (&Announcement, Option<usize>)> {
        let origins = self.origins.range(node..);
        origins.map(|(_, origin)| (&origin.announcement, origin.hops()))
    }

    /// What this node itself offers.
    pub fn own(&self) -> Option<&Announcement> {
        self.own.as_ref().map(|(_, announcement)| announcement)
    }

    fn hear(
        &mut self,
        from: PeerId,
        forwarded: Forwarded,
        now: Instant,
    ) -> Result<(Heard, Vec<ToSend>), HearError> {
        let is_home = self.neighbours.get(&from) == Some(&Role::Home);
        if is_home && forwarded.path.len() > 1 {
            return Err(HearError::NotAMain);
        }
        // What is known already was looked at when it came first.
        let origin = forwarded.path.first().and_then(|origin| self.origins.get(origin));
        let known = origin.filter(|known| known.signed == forwarded.signed);
        let announcement = match known {
            Some(known) => known.announcement.clone(),
            None => forwarded.signed.open()?,
        };
        forwarded.check(&announcement, from, self.me)?;
        let (id, stamp) = (announcement.origin, announcement.stamp);
        let newest = self.origins.get(&id).map(|known| known.announcement.stamp);
        let left = self.gone.get(&id).map(|gone| gone.stamp);
        if newest.is_some_and(|newest| stamp < newest) || left.is_some_and(|left| stamp <= left) {
            // Whoever passes on a last word has forgotten its origin, also where that has come back by another way since.
            let lost = announcement.departure.map(|_| self.lose(id, from));
            return Ok((Heard::Stale, lost.unwrap_or_default()));
        }
        if announcement.departure.is_some() {
            return Ok((Heard::News, self.leave(forwarded, &announcement, now)));
        }
        let way = Way {
            path: forwarded.path,
            heard_at: now,
        };
        if newest == Some(stamp) {
            if let Some(origin) = self.origins.get_mut(&id) {
                origin.ways.insert(from, way);
            }
            return Ok((Heard::Known, self.tell(id)));
        }
        if newest.is_none() && self.origins.len() >= Self::ORIGINS_MAX {
            return Err(HearError::Full);
        }
        self.gone.remove(&id);
        // Who was told of a way before is told if there is none any more.
        let (mut ways, told) = self
            .remove(id)
            .map(|known| (known.ways, known.told))
            .unwrap_or_default();
        ways.insert(from, way);
        if let Some(name) = &announcement.name {
            // Of another one that claims it the services are kept, and it is called by its id.
            self.names.entry(name.clone()).or_insert(id);
        }
        for service in &announcement.services {
            self.services.entry(service.name.clone()).or_default().insert(id);
        }
        let origin = Origin {
            signed: forwarded.signed,
            announcement,
            heard_at: now,
            ways,
            told,
        };
        self.origins.insert(id, origin);
        Ok((Heard::News, self.tell(id)))
    }

    /// A neighbour does not reach a node any more.
    fn lose(&mut self, id: PeerId, from: PeerId) -> Vec<ToSend> {
        let known = self.origins.get_mut(&id);
        let was = known.and_then(|known| known.ways.remove(&from));
        was.map(|_| self.tell(id)).unwrap_or_default()
    }

    /// A node has said that it goes. Neighbours that were told of it hear the same, or, where its last word goes no further,
    /// that it is lost. Whoever was told by others hears it from those.
    fn leave(&mut self, forwarded: Forwarded, announcement: &Announcement, now: Instant) -> Vec<ToSend> {
        let id = announcement.origin;
        let told = self
            .origins
            .get(&id)
            .map(|known| known.told.clone())
            .unwrap_or_default();
        self.forget(id, announcement.stamp, now, true);
        let Forwarded { mut path, signed } = forwarded;
        let passed = path.clone();
        let goes_on = passed.len() < usize::from(announcement.hops_max);
        path.push(self.me);
        self.told()
            .filter_map(|to| {
                told.get(&to)?;
                let message = if goes_on && !passed.contains(&to) {
                    Message::Announced(Box::new(Forwarded {
                        path: path.clone(),
                        signed: signed.clone(),
                    }))
                } else {
                    Message::Lost { origin: id }
                };
                Some(ToSend { to, message })
            })
            .collect()
    }

    fn forget(&mut self, id: PeerId, stamp: Stamp, now: Instant, has_said_so: bool) {
        self.remove(id);
        if self.gone.len() < Self::ORIGINS_MAX {
            let gone = Gone {
                stamp,
                until: now + Self::GONE_FOR,
                has_said_so,
            };
            self.gone.insert(id, gone);
        }
    }

    /// Takes a node out of everything.
    fn remove(&mut self, id: PeerId) -> Option<Origin> {
        let origin = self.origins.remove(&id)?;
        if let Some(name) = &origin.announcement.name
            && self.names.get(name) == Some(&id)
        {
            self.names.remove(name);
        }
        for service in &origin.announcement.services {
            if let Some(offering) = self.services.get_mut(&service.name) {
                offering.remove(&id);
                if offering.is_empty() {
                    self.services.remove(&service.name);
                }
            }
        }
        Some(origin)
    }

    fn own_for(&self, to: PeerId) -> Option<ToSend> {
        let (signed, _) = self.own.as_ref()?;
        let is_main = self.neighbours.get(&to) == Some(&Role::Main);
        is_main.then(|| ToSend {
            to,
            message: Message::Announced(Box::new(Forwarded::first(self.me, signed.clone()))),
        })
    }

    /// Whether a neighbour is told of others.
    fn is_told(&self, neighbour: PeerId) -> bool {
        self.role == Role::Main && self.neighbours.get(&neighbour) == Some(&Role::Main)
    }

    /// What neighbours are to be told of a node so that they know what is so now.
    fn tell(&mut self, id: PeerId) -> Vec<ToSend> {
        let mains: Vec<PeerId> = self.told().filter(|to| *to != id).collect();
        let Some(origin) = self.origins.get_mut(&id) else {
            return Vec::new();
        };
        origin.told.retain(|to, _| mains.contains(to));
        mains
            .iter()
            .filter_map(|to| origin.tell(id, self.me, &self.mesh, *to))
            .collect()
    }

    /// Who is told of others.
    fn told(&self) -> impl Iterator<Item = PeerId> {
        let is_main = |(id, role): (&PeerId, &Role)| (*role == Role::Main).then_some(*id);
        let mains = self.neighbours.iter().filter_map(is_main);
        mains.filter(|_| self.role == Role::Main)
    }
}

impl Origin {
    /// What a neighbour is to be told: the nearest way that does not lead over itself, if that or what is announced is other
    /// than what it knows of.
    fn tell(&mut self, id: PeerId, me: PeerId, mesh: &BTreeSet<PeerId>, to: PeerId) -> Option<ToSend> {
        if to == id {
            return None;
        }
        let far = usize::from(self.announcement.hops_max);
        let is_inside = |way: &Way| mesh.contains(&to) && way.path.last().is_some_and(|by| mesh.contains(by));
        let leads = |way: &&Way| way.path.len() < far && !way.path.contains(&to) && !is_inside(way);
        let nearest = self.ways.values().filter(leads);
        let nearest = nearest.min_by_key(|way| (way.path.len(), way.path.last().copied()));
        let message = match nearest {
            Some(way) => {
                let told = (self.announcement.stamp, way.path.clone());
                if self.told.get(&to) == Some(&told) {
                    return None;
                }
                self.told.insert(to, told);
                let mut path = way.path.clone();
                path.push(me);
                let signed = self.signed.clone();
                Message::Announced(Box::new(Forwarded { path, signed }))
            }
            None => {
                self.told.remove(&to)?;
                Message::Lost { origin: id }
            }
        };
        Some(ToSend { to, message })
    }

    fn nearest(&self) -> Option<&Way> {
        self.ways.values().min_by_key(|way| way.path.len())
    }

    fn hops(&self) -> Option<usize> {
        self.nearest().map(|way| way.path.len())
    }
}

/// Whether a node that is so many links away is this one, or a home of its.
pub(crate) fn is_local(announcement: &Announcement, hops: Option<usize>) -> bool {
    match hops {
        Some(0) => true,
        Some(1) => announcement.role == Role::Home,
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests;
