//! What a node says of its services to all who are a few links away: signed by it, and numbered. Who has heard it passes it
//! on as it is. Keeps nothing.

use crate::service::ServiceError;
use crate::{NodeName, ParseNameError, Service};
use lapwing_base::{ClusterId, Keypair, PeerId, Role, public_key};
use serde::{Deserialize, Serialize};

/// Everything that a node offers at a time. The next one replaces it, so that nothing has to be taken back one by one.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// Whose it is, whoever passes it on.
    pub origin: PeerId,
    /// Which of its announcements.
    pub stamp: Stamp,
    /// To which cluster it belongs.
    pub cluster: Option<ClusterId>,
    /// What it wants to be called.
    pub name: Option<NodeName>,
    /// Main or home.
    pub role: Role,
    /// How many links away it may be known: at most [`Announcement::HOPS_MAX`].
    pub hops_max: u8,
    /// Sorted by name, none twice.
    pub services: Vec<Service>,
    /// Why there will be no other; `None` as long as it is there.
    pub departure: Option<Departure>,
}

/// Numbers announcements: later ones are greater, also over a restart.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Stamp {
    /// Grows with every start of the node.
    pub epoch: u64,
    /// Grows with every announcement of one run.
    pub number: u64,
}

/// Why a node goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Departure {
    /// It was stopped.
    Shutdown,
    /// It will be back.
    Maintenance,
    /// It belongs elsewhere from now on.
    Rebalance,
    /// Somebody has removed it.
    Removed,
}

/// An announcement with its signature, as its origin has written it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct SignedAnnouncement {
    /// The announcement, encoded: exactly what is signed.
    body: Vec<u8>,
    signature: Vec<u8>,
}

/// An announcement on its way.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Forwarded {
    /// The nodes that it has passed, its origin first and whoever sends it last: each adds itself and nothing else.
    pub path: Vec<PeerId>,
    /// As its origin has signed it.
    pub signed: SignedAnnouncement,
}

/// Something that is no announcement.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnouncementError {
    /// More bytes than are taken.
    #[error(
        "an announcement of {length} bytes is longer than the {BODY_MAX} that are taken; offer fewer services, or name fewer methods"
    )]
    Length {
        /// How many there are.
        length: usize,
    },
    /// Bytes that say nothing.
    #[error("an announcement cannot be read")]
    Unreadable,
    /// Not its origin's.
    #[error("an announcement is not signed by its origin")]
    Forged,
    /// Hops that nobody may ask for.
    #[error(
        "an announcement is to be known {hops_max} links away; between 1 and {} are allowed",
        Announcement::HOPS_MAX
    )]
    Hops {
        /// How many were asked for.
        hops_max: u8,
    },
    /// More services than are taken.
    #[error(
        "an announcement has {count} services; at most {} are taken",
        Announcement::SERVICES_MAX
    )]
    TooManyServices {
        /// How many there are.
        count: usize,
    },
    /// The same service twice, or out of order.
    #[error("an announcement names its services twice, or in no order")]
    Disorder,
    /// One of them.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The node's own name.
    #[error(transparent)]
    Name(#[from] ParseNameError),
    /// A way that it cannot have come.
    #[error("an announcement has come by a way that leads nowhere")]
    Path,
    /// It has come further than it may.
    #[error("an announcement has come over more links than it may")]
    TooFar,
}

/// The longest announcement in bytes: a few hundred services with their methods, and one frame on a link.
const BODY_MAX: usize = 64 * 1024;

/// Of ed25519.
const SIGNATURE_LENGTH: usize = 64;

/// Nothing that a key signs elsewhere begins like this.
const SIGNED_AS: &[u8] = b"lapwing-federation/v1/announcement\0";

impl Announcement {
    /// How far an announcement may go at most, however its origin wishes.
    pub const HOPS_MAX: u8 = 8;

    /// How far it goes if nobody says otherwise: home, main, main, home.
    pub const HOPS_DEFAULT: u8 = 3;

    /// How many services a node may offer.
    pub const SERVICES_MAX: usize = 256;

    fn check(&self) -> Result<(), AnnouncementError> {
        let hops_max = self.hops_max;
        if !(1..=Self::HOPS_MAX).contains(&hops_max) {
            return Err(AnnouncementError::Hops { hops_max });
        }
        let count = self.services.len();
        if count > Self::SERVICES_MAX {
            return Err(AnnouncementError::TooManyServices { count });
        }
        if !self.services.is_sorted_by(|one, next| one.name < next.name) {
            return Err(AnnouncementError::Disorder);
        }
        self.services.iter().try_for_each(Service::check)?;
        Ok(())
    }
}

impl SignedAnnouncement {
    /// Signs what this node announces.
    ///
    /// # Errors
    /// When it is more than others take, or the key is not its origin's.
    pub fn new(announcement: &Announcement, keypair: &Keypair) -> Result<Self, AnnouncementError> {
        announcement.check()?;
        let body = postcard::to_stdvec(announcement).map_err(|_| AnnouncementError::Unreadable)?;
        if body.len() > BODY_MAX {
            return Err(AnnouncementError::Length { length: body.len() });
        }
        if keypair.public().to_peer_id() != announcement.origin {
            return Err(AnnouncementError::Forged);
        }
        let signature = keypair
            .sign(&signed(&body))
            .map_err(|_| AnnouncementError::Forged)?;
        Ok(Self { body, signature })
    }

    /// What it says, where it is whole, its origin's, and within bounds.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self) -> Result<Announcement, AnnouncementError> {
        let length = self.body.len();
        if length > BODY_MAX {
            return Err(AnnouncementError::Length { length });
        }
        // What follows is of a later version, and signed all the same.
        let announcement: Announcement =
            postcard::from_bytes(&self.body).map_err(|_| AnnouncementError::Unreadable)?;
        let key = public_key(&announcement.origin).filter(|_| self.signature.len() == SIGNATURE_LENGTH);
        if !key.is_some_and(|key| key.verify(&signed(&self.body), &self.signature)) {
            return Err(AnnouncementError::Forged);
        }
        announcement.check()?;
        Ok(announcement)
    }
}

fn signed(body: &[u8]) -> Vec<u8> {
    [SIGNED_AS, body].concat()
}

impl Forwarded {
    /// As its origin sends it.
    pub fn first(origin: PeerId, signed: SignedAnnouncement) -> Self {
        Self {
            path: vec![origin],
            signed,
        }
    }

    /// About how many bytes it takes on a link.
    pub(crate) fn bytes(&self) -> usize {
        64 * self.path.len() + self.signed.body.len() + SIGNATURE_LENGTH
    }

    /// Links that it has crossed when it has arrived.
    pub fn hops(&self) -> usize {
        self.path.len()
    }

    /// Whether it can have come from `from` to `me` by the way that it says, within what its origin allows.
    ///
    /// # Errors
    /// What is wrong with the way.
    pub fn check(
        &self,
        announcement: &Announcement,
        from: PeerId,
        me: PeerId,
    ) -> Result<(), AnnouncementError> {
        let ends = self.path.first().zip(self.path.last());
        if ends != Some((&announcement.origin, &from)) || self.path.contains(&me) {
            return Err(AnnouncementError::Path);
        }
        if self.path.len() > usize::from(announcement.hops_max) {
            return Err(AnnouncementError::TooFar);
        }
        // A few, so that nothing is gained by a set.
        let is_twice = |place: usize| self.path[..place].contains(&self.path[place]);
        if (1..self.path.len()).any(is_twice) {
            return Err(AnnouncementError::Path);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a node with this key announces first.
    pub(crate) fn announcement(keypair: &Keypair, services: &[&str]) -> Announcement {
        let mut services: Vec<Service> = services
            .iter()
            .map(|name| Service::new(name.parse().unwrap()))
            .collect();
        services.sort_by(|one, other| one.name.cmp(&other.name));
        Announcement {
            origin: keypair.public().to_peer_id(),
            stamp: Stamp { epoch: 1, number: 1 },
            cluster: None,
            name: None,
            role: Role::Home,
            hops_max: Announcement::HOPS_DEFAULT,
            services,
            departure: None,
        }
    }

    #[test]
    fn what_a_later_version_appends_is_passed_over() {
        let key = Keypair::generate_ed25519();
        let announcement = announcement(&key, &["shop"]);
        let mut body = SignedAnnouncement::new(&announcement, &key).unwrap().body;
        body.extend([1, 2, 3]);
        let signature = key.sign(&signed(&body)).unwrap();
        let later = SignedAnnouncement { body, signature };
        assert_eq!(later.open(), Ok(announcement));
    }

    #[test]
    fn what_was_signed_is_read_as_it_was_written() {
        let key = Keypair::generate_ed25519();
        let announcement = announcement(&key, &["shop", "blog"]);
        let signed = SignedAnnouncement::new(&announcement, &key).unwrap();
        assert_eq!(signed.open(), Ok(announcement));
    }

    #[test]
    fn what_somebody_else_has_signed_or_altered_is_not_its_origins() {
        let (key, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let announcement = announcement(&key, &["blog"]);
        assert_eq!(
            SignedAnnouncement::new(&announcement, &other),
            Err(AnnouncementError::Forged)
        );
        let mut signed = SignedAnnouncement::new(&announcement, &key).unwrap();
        // Behind the origin, which takes 39 bytes.
        signed.body[40] ^= 1;
        assert!(matches!(
            signed.open(),
            Err(AnnouncementError::Forged | AnnouncementError::Unreadable)
        ));
        signed.body.clear();
        assert_eq!(signed.open(), Err(AnnouncementError::Unreadable));
    }

    #[test]
    fn what_is_too_much_is_neither_signed_nor_taken() {
        let key = Keypair::generate_ed25519();
        let mut far = announcement(&key, &["blog"]);
        far.hops_max = Announcement::HOPS_MAX + 1;
        assert_eq!(
            SignedAnnouncement::new(&far, &key),
            Err(AnnouncementError::Hops { hops_max: 9 })
        );
        let mut twice = announcement(&key, &["blog"]);
        twice.services.push(twice.services[0].clone());
        assert_eq!(
            SignedAnnouncement::new(&twice, &key),
            Err(AnnouncementError::Disorder)
        );
        let long = SignedAnnouncement {
            body: vec![0; BODY_MAX + 1],
            signature: Vec::new(),
        };
        assert_eq!(
            long.open(),
            Err(AnnouncementError::Length { length: BODY_MAX + 1 })
        );
        // A key that signs what others do not take.
        let body = postcard::to_stdvec(&far).unwrap();
        let signature = key.sign(&signed(&body)).unwrap();
        let signed = SignedAnnouncement { body, signature };
        assert_eq!(signed.open(), Err(AnnouncementError::Hops { hops_max: 9 }));
    }

    #[test]
    fn a_way_begins_at_the_origin_ends_at_the_sender_and_meets_nobody_twice() {
        let key = Keypair::generate_ed25519();
        let said = announcement(&key, &["blog"]);
        let signed = SignedAnnouncement::new(&said, &key).unwrap();
        let [a, b, me] = [(); 3].map(|()| PeerId::random());
        let check = |path: &[PeerId], from: PeerId| {
            let forwarded = Forwarded {
                path: path.to_vec(),
                signed: signed.clone(),
            };
            forwarded.check(&said, from, me)
        };
        let origin = said.origin;
        assert_eq!(check(&[origin], origin), Ok(()));
        assert_eq!(check(&[origin, a, b], b), Ok(()));
        for (path, from) in [
            (vec![], a),
            (vec![a], a),
            (vec![origin, a], b),
            (vec![origin, me, a], a),
            (vec![origin, a, origin], origin),
        ] {
            assert_eq!(check(&path, from), Err(AnnouncementError::Path), "{path:?}");
        }
        let c = PeerId::random();
        assert_eq!(check(&[origin, a, b, c], c), Err(AnnouncementError::TooFar));
    }
}
