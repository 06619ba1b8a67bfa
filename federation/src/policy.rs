//! Whom a node takes for a neighbour, and which services cross the border between clusters. Asks and tells nobody.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use lapwing_base::{ClusterId, PeerId, Role};

use crate::{NodeName, ServiceName};

/// What a node allows others. By default: homes of its own cluster, the mains that were named to it, and no other cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policy {
    /// Which other clusters it has to do with.
    pub boundary: Boundary,
    /// Which homes a main takes in. Default: all.
    pub homes: Option<BTreeSet<PeerId>>,
    /// What neighbours prove to each other that they know. Who does may be a main that was not named. Default: nothing.
    pub token: Option<Token>,
    /// Which services go to neighbours of other clusters.
    pub lets_out: ServiceRule,
    /// Which services of other clusters are called from here.
    pub lets_in: ServiceRule,
    /// How many calls a neighbour of another cluster may make in a minute. Default: 100 where that cluster was not named,
    /// and else as many as it likes.
    pub foreign_calls_per_minute: Option<u32>,
}

/// Which other clusters a node has to do with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Boundary {
    /// None.
    #[default]
    Strict,
    /// These.
    Bridged(BTreeSet<ClusterId>),
    /// All: whoever comes is let in and written down.
    Open,
}

/// Which services may cross a border. What is denied is, whatever is allowed. Default: all may.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServiceRule {
    /// Only these; `None` for all.
    pub allowed: Option<BTreeSet<ServiceName>>,
    /// None of these.
    pub denied: BTreeSet<ServiceName>,
}

/// A secret that is shared by those who may be neighbours, or by a service and its callers. Never shown, and never sent.
#[derive(Clone, Eq, PartialEq)]
pub struct Token([u8; 32]);

/// That somebody knows a token, for one purpose.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Proof([u8; 32]);

/// A text that is too easily guessed for a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a token has between {} and {} characters, not {length}; draw one with `openssl rand -hex 32`",
    Token::LENGTH_MIN,
    Token::LENGTH_MAX
)]
pub struct TokenError {
    /// How many bytes it has.
    pub length: usize,
}

/// What a node knows of itself and of others beside what they announce.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Around {
    /// Whether the node itself is a main or a home.
    pub role: Role,
    /// To which cluster the node belongs.
    pub cluster: Option<ClusterId>,
    /// Who else belongs to it, where that is known for sure: of members of a cluster with a log.
    pub members: Option<Arc<HashSet<PeerId>>>,
    /// With whom it is to be connected, the most wanted first.
    pub mains: Vec<PeerId>,
}

/// What a neighbour says of itself when it greets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    /// Who it is: proven by its connection.
    pub peer: PeerId,
    /// What it says that it is.
    pub role: Role,
    /// To which cluster it says that it belongs.
    pub cluster: Option<ClusterId>,
    /// That it knows the token.
    pub proof: Option<Proof>,
}

/// What a neighbour is taken for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Admitted {
    /// Main or home.
    pub role: Role,
    /// Whether it belongs to another cluster.
    pub is_foreign: bool,
}

/// Why somebody is no neighbour.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAdmitted {
    /// It does not know the token.
    #[error("it does not prove that it knows the token; give both nodes the same --token-file")]
    Token,
    /// Another cluster's.
    #[error("it belongs to {}, and this node has to do with {} only; allow it with --bridge", shown(.theirs.as_ref()), shown(.ours.as_ref()))]
    Cluster {
        /// The neighbour's.
        theirs: Option<ClusterId>,
        /// This node's.
        ours: Option<ClusterId>,
    },
    /// It says that it belongs to this node's cluster, whose log does not have it.
    #[error("it is no member of cluster {0}; let it join, or give both nodes the same --token-file")]
    NotMember(ClusterId),
    /// A home that is not on the list.
    #[error("it is none of the homes that this main takes in; name it with --admit")]
    Home,
    /// A home, where a home is asked.
    #[error("both are homes, and a home is connected with mains only; name a main with --connect")]
    HomeOfHome,
    /// A main that nobody has named.
    #[error(
        "it greets as a main, and was not named as one; name it with --peers, or give both nodes the same --token-file"
    )]
    Main,
}

fn shown(cluster: Option<&ClusterId>) -> String {
    cluster.map_or_else(|| "no cluster".to_owned(), |cluster| format!("cluster {cluster}"))
}

impl Around {
    /// A node that knows nobody and belongs to no cluster.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            cluster: None,
            members: None,
            mains: Vec::new(),
        }
    }

    pub(crate) fn is_member(&self, peer: PeerId) -> bool {
        self.members
            .as_ref()
            .is_some_and(|members| members.contains(&peer))
    }

    /// The mains with which a main has sessions of its own accord: those that were named, and, where it has something to tell
    /// them, those of its cluster.
    pub(crate) fn wanted_mains(&self, me: PeerId, tells: bool) -> Vec<PeerId> {
        let mains = self.mains.iter().copied();
        mains
            .filter(|main| *main != me && (tells || !self.is_member(*main)))
            .collect()
    }

    /// The mains that are all connected with each other, since each of them knows all of them by the cluster's log. Mains
    /// that were named to each other by hand may stand in a line.
    pub(crate) fn mesh(&self) -> BTreeSet<PeerId> {
        let Some(members) = &self.members else {
            return BTreeSet::new();
        };
        let mains = self.mains.iter().copied();
        mains.filter(|main| members.contains(main)).collect()
    }
}

impl Token {
    /// Shorter ones could be found by trying.
    pub const LENGTH_MIN: usize = 16;

    /// Longer ones are files given by mistake.
    pub const LENGTH_MAX: usize = 1024;

    /// A token from its text; space around it does not count.
    ///
    /// # Errors
    /// When it is too easily guessed.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let length = text.len();
        if !(Self::LENGTH_MIN..=Self::LENGTH_MAX).contains(&length) {
            return Err(TokenError { length });
        }
        Ok(Self(blake3::derive_key(
            "lapwing-federation/v1/token",
            text.as_bytes(),
        )))
    }

    /// Proves to `to` that `from` knows the token. It is of no use to anybody else, since both are proven by their
    /// connection.
    pub fn prove(&self, from: PeerId, to: PeerId) -> Proof {
        self.over(&[b"greeting", &from.to_bytes(), &to.to_bytes()])
    }

    /// Proves that whoever makes a call knows the token of its service.
    pub fn prove_call(
        &self,
        id: u128,
        service: &ServiceName,
        method: &str,
        arguments: Option<&str>,
    ) -> Proof {
        self.over(&[
            b"call",
            &id.to_be_bytes(),
            service.as_str().as_bytes(),
            method.as_bytes(),
            arguments.unwrap_or_default().as_bytes(),
        ])
    }

    /// Each part with its length in front, so that none can be taken for another.
    fn over(&self, parts: &[&[u8]]) -> Proof {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Proof(*hasher.finalize().as_bytes())
    }
}

impl Proof {
    /// Whether both are the same, found in a time that does not tell how much of them is.
    pub fn is(&self, other: &Self) -> bool {
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl ServiceRule {
    /// Whether a service may cross.
    pub fn allows(&self, service: &ServiceName) -> bool {
        !self.denied.contains(service)
            && self
                .allowed
                .as_ref()
                .is_none_or(|allowed| allowed.contains(service))
    }
}

impl Policy {
    /// Of clusters that nobody has named.
    pub const CALLS_PER_MINUTE_DEFAULT: u32 = 100;

    /// What a neighbour is taken for by `me`, or why for none.
    ///
    /// # Errors
    /// When it is to be refused.
    pub fn admit(&self, me: PeerId, around: &Around, claim: &Claim) -> Result<Admitted, NotAdmitted> {
        let is_member = around
            .members
            .as_ref()
            .is_some_and(|members| members.contains(&claim.peer));
        let knows = self.token.as_ref().map(|token| {
            let expected = token.prove(claim.peer, me);
            claim.proof.as_ref().is_some_and(|proof| proof.is(&expected))
        });
        if knows == Some(false) && !is_member {
            return Err(NotAdmitted::Token);
        }
        let is_foreign = !is_member && claim.cluster != around.cluster;
        let is_named = around.mains.contains(&claim.peer);
        match (&self.boundary, claim.cluster, around.cluster) {
            (Boundary::Open, ..) => (),
            (Boundary::Bridged(clusters), Some(theirs), _) if is_foreign && clusters.contains(&theirs) => (),
            _ if is_foreign => {
                let (theirs, ours) = (claim.cluster, around.cluster);
                return Err(NotAdmitted::Cluster { theirs, ours });
            }
            // A log says who belongs to it; without one, or beside it, the token does.
            (.., Some(ours))
                if around.members.is_some() && !is_member && knows != Some(true) && !is_named =>
            {
                return Err(NotAdmitted::NotMember(ours));
            }
            _ => (),
        }
        // What a member of the cluster is may change at any moment, and its log says it.
        if (claim.role, around.role, is_member) == (Role::Home, Role::Home, false) {
            return Err(NotAdmitted::HomeOfHome);
        }
        let role = match claim.role {
            // Who passes on what others announce, and is told everything, has to be known for one. A member that was no
            // main when this node last heard of it will be named in a moment.
            Role::Main if is_named || knows == Some(true) => Role::Main,
            Role::Main if is_member => Role::Home,
            Role::Main => return Err(NotAdmitted::Main),
            Role::Home => Role::Home,
        };
        let is_listed = |homes: &BTreeSet<PeerId>| homes.contains(&claim.peer);
        if role == Role::Home && !is_named && self.homes.as_ref().is_some_and(|homes| !is_listed(homes)) {
            return Err(NotAdmitted::Home);
        }
        Ok(Admitted { role, is_foreign })
    }

    /// How many calls a minute a neighbour of this cluster may make; `None` for any number.
    pub fn foreign_calls(&self, cluster: Option<ClusterId>) -> Option<u32> {
        let is_named = match (&self.boundary, cluster) {
            (Boundary::Bridged(clusters), Some(cluster)) => clusters.contains(&cluster),
            _ => false,
        };
        self.foreign_calls_per_minute
            .or_else(|| (!is_named).then_some(Self::CALLS_PER_MINUTE_DEFAULT))
    }
}

/// What is written down of who was let in and what was refused.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AuditEvent {
    /// A neighbour was let in.
    Admitted {
        /// Who.
        peer: PeerId,
        /// What it is taken for.
        role: Role,
        /// To which cluster it says that it belongs.
        cluster: Option<ClusterId>,
        /// Whether that is another one.
        is_foreign: bool,
    },
    /// Somebody was not.
    Refused {
        /// Who.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// A call was not carried out, or not passed on.
    CallRefused {
        /// The neighbour that has sent it; `None` for this node's own edge.
        from: Option<PeerId>,
        /// Whoever made it, as it says.
        caller: Option<PeerId>,
        /// The service.
        service: ServiceName,
        /// Why.
        reason: String,
    },
    /// A name that somebody else has was claimed.
    NameTaken {
        /// Which.
        name: NodeName,
        /// By whom.
        peer: PeerId,
        /// Who has it.
        holder: PeerId,
    },
    /// Others of these were not written, since there were too many.
    Omitted {
        /// How many.
        count: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ClusterId = ClusterId::from_bytes([1; 16]);
    const THEIRS: ClusterId = ClusterId::from_bytes([2; 16]);

    fn claim(role: Role, cluster: Option<ClusterId>) -> Claim {
        Claim {
            peer: PeerId::random(),
            role,
            cluster,
            proof: None,
        }
    }

    fn admitted(role: Role, is_foreign: bool) -> Result<Admitted, NotAdmitted> {
        Ok(Admitted { role, is_foreign })
    }

    #[test]
    fn by_default_homes_of_the_same_cluster_and_named_mains_are_let_in_and_nobody_else() {
        let (policy, me) = (Policy::default(), PeerId::random());
        let main = claim(Role::Main, None);
        let around = Around {
            mains: vec![main.peer],
            ..Around::new(Role::Main)
        };
        assert_eq!(policy.admit(me, &around, &main), admitted(Role::Main, false));
        assert_eq!(
            policy.admit(me, &around, &claim(Role::Home, None)),
            admitted(Role::Home, false)
        );
        assert_eq!(
            policy.admit(me, &around, &claim(Role::Main, None)),
            Err(NotAdmitted::Main)
        );
        let (theirs, ours) = (Some(THEIRS), None);
        assert_eq!(
            policy.admit(me, &around, &claim(Role::Home, theirs)),
            Err(NotAdmitted::Cluster { theirs, ours })
        );
    }

    #[test]
    fn a_home_has_no_home_for_a_neighbour_neither_where_it_asks_nor_where_it_is_asked() {
        let (policy, me) = (Policy::default(), PeerId::random());
        let home = claim(Role::Home, None);
        let mut around = Around::new(Role::Home);
        assert_eq!(policy.admit(me, &around, &home), Err(NotAdmitted::HomeOfHome));
        around.mains = vec![home.peer];
        assert_eq!(policy.admit(me, &around, &home), Err(NotAdmitted::HomeOfHome));
        // A member may be about to be a main.
        around.members = Some(Arc::new(HashSet::from([home.peer])));
        assert_eq!(policy.admit(me, &around, &home), admitted(Role::Home, false));
    }

    #[test]
    fn who_only_says_that_it_belongs_to_a_cluster_with_a_log_does_not() {
        let (policy, me) = (Policy::default(), PeerId::random());
        let member = claim(Role::Home, None);
        let around = Around {
            cluster: Some(OURS),
            members: Some(Arc::new(HashSet::from([member.peer]))),
            ..Around::new(Role::Main)
        };
        // It may have greeted before it knew.
        assert_eq!(policy.admit(me, &around, &member), admitted(Role::Home, false));
        assert_eq!(
            policy.admit(me, &around, &claim(Role::Home, Some(OURS))),
            Err(NotAdmitted::NotMember(OURS))
        );
    }

    #[test]
    fn a_token_lets_in_whoever_proves_it_and_nobody_else() {
        let token = Token::new("correct horse battery staple\n").unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        let policy = Policy {
            token: Some(token.clone()),
            ..Policy::default()
        };
        let (me, around) = (PeerId::random(), Around::new(Role::Main));
        let mut main = claim(Role::Main, None);
        assert_eq!(policy.admit(me, &around, &main), Err(NotAdmitted::Token));
        main.proof = Some(token.prove(main.peer, me));
        assert_eq!(policy.admit(me, &around, &main), admitted(Role::Main, false));
        // What it has shown to another node is of no use here.
        main.proof = Some(token.prove(main.peer, PeerId::random()));
        assert_eq!(policy.admit(me, &around, &main), Err(NotAdmitted::Token));
        assert_eq!(Token::new("short"), Err(TokenError { length: 5 }));
    }

    #[test]
    fn bridged_clusters_are_let_in_and_marked() {
        let me = PeerId::random();
        let around = Around {
            cluster: Some(OURS),
            ..Around::new(Role::Main)
        };
        let mut policy = Policy {
            boundary: Boundary::Bridged(BTreeSet::from([THEIRS])),
            ..Policy::default()
        };
        let theirs = claim(Role::Home, Some(THEIRS));
        assert_eq!(policy.admit(me, &around, &theirs), admitted(Role::Home, true));
        assert!(policy.admit(me, &around, &claim(Role::Home, None)).is_err());
        assert_eq!(policy.foreign_calls(Some(THEIRS)), None);
        policy.boundary = Boundary::Open;
        assert_eq!(
            policy.admit(me, &around, &claim(Role::Home, None)),
            admitted(Role::Home, true)
        );
        assert_eq!(policy.foreign_calls(Some(THEIRS)), Some(100));
    }

    #[test]
    fn a_main_with_a_list_takes_in_these_homes_only() {
        let (me, home) = (PeerId::random(), claim(Role::Home, None));
        let policy = Policy {
            homes: Some(BTreeSet::from([home.peer])),
            ..Policy::default()
        };
        let around = Around::new(Role::Main);
        assert_eq!(policy.admit(me, &around, &home), admitted(Role::Home, false));
        assert_eq!(
            policy.admit(me, &around, &claim(Role::Home, None)),
            Err(NotAdmitted::Home)
        );
    }

    #[test]
    fn a_proof_of_one_call_is_none_of_another() {
        let token = Token::new("correct horse battery staple").unwrap();
        let (blog, shop): (ServiceName, ServiceName) = ("blog".parse().unwrap(), "shop".parse().unwrap());
        let proof = token.prove_call(1, &blog, "get", Some("[1]"));
        assert!(proof.is(&token.prove_call(1, &blog, "get", Some("[1]"))));
        for other in [
            token.prove_call(2, &blog, "get", Some("[1]")),
            token.prove_call(1, &shop, "get", Some("[1]")),
            token.prove_call(1, &blog, "get", Some("[2]")),
            token.prove_call(1, &blog, "get[", Some("1]")),
        ] {
            assert!(!proof.is(&other));
        }
    }

    #[test]
    fn what_is_denied_does_not_cross_whatever_is_allowed() {
        let [blog, shop]: [ServiceName; 2] = ["blog", "shop"].map(|name| name.parse().unwrap());
        let all = ServiceRule::default();
        assert!(all.allows(&blog) && all.allows(&shop));
        let rule = ServiceRule {
            allowed: Some(BTreeSet::from([blog.clone(), shop.clone()])),
            denied: BTreeSet::from([shop.clone()]),
        };
        assert!(rule.allows(&blog) && !rule.allows(&shop));
    }
}
