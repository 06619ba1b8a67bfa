//! What is known of the mains that a relay was told of: who was found where, and who is not reached.
//!
//! Pure: it asks nobody and reads no clock.

use lapwing_base::{PeerId, Role};
use lapwing_federation::NamedMain;

use crate::relay::{MainSource, WantedMains};

/// What was found last.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// In the order in which they were named.
    pub(super) sources: Vec<Source>,
    pub(super) at_gateway: Vec<PeerId>,
    wanted: WantedMains,
}

/// Where a main is to be, and what has come of looking.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) place: MainSource,
    /// By whom it was answered last.
    pub(super) found: Vec<PeerId>,
    /// Why nobody has answered when it was asked last.
    pub(super) error: Option<String>,
}

impl Known {
    /// Takes in what is wanted now; what was found at places that stay is kept.
    pub(super) fn want(&mut self, wanted: WantedMains) {
        let mut before = std::mem::take(&mut self.sources);
        let places = wanted.sources.iter().cloned();
        self.sources = places
            .map(
                |place| match before.iter().position(|source| source.place == place) {
                    Some(known) => before.swap_remove(known),
                    None => Source {
                        place,
                        found: Vec::new(),
                        error: None,
                    },
                },
            )
            .collect();
        self.wanted = wanted;
    }

    /// In the order in which they were named, none twice.
    pub(super) fn mains(&self, me: PeerId) -> Vec<PeerId> {
        let mut mains = Vec::new();
        let sources = self.sources.iter().enumerate();
        let found = sources.flat_map(|(place, source)| {
            let is_wanted = move |peer: &&PeerId| !self.wanted.is_removed(**peer, place);
            source.found.iter().filter(is_wanted)
        });
        let at_gateway = self
            .at_gateway
            .iter()
            .filter(|peer| !self.wanted.removed.contains_key(peer));
        for peer in found.chain(at_gateway) {
            if *peer != me && !mains.contains(peer) {
                mains.push(*peer);
            }
        }
        mains
    }

    /// What people are shown of it.
    pub(super) fn named(&self) -> Vec<NamedMain> {
        let named = self.sources.iter().map(|source| NamedMain {
            given: source.place.to_string(),
            found: source.found.clone(),
            error: source.error.clone(),
        });
        named.collect()
    }

    /// Where mains are to be of which none is connected.
    pub(super) fn missing(&self, me: PeerId, neighbours: &[PeerId]) -> Vec<&Source> {
        let is_settled = |peer: PeerId, place| {
            peer == me || self.wanted.is_removed(peer, place) || neighbours.contains(&peer)
        };
        let sources = self.sources.iter().enumerate();
        let missing = sources
            .filter(|(place, source)| !source.found.iter().any(|peer| is_settled(*peer, *place)))
            .map(|(_, source)| source);
        missing.collect()
    }

    /// Whether a node is connected with all that it is to be: a home with one.
    pub(super) fn is_whole(&self, role: Role, me: PeerId, neighbours: &[PeerId]) -> bool {
        let mains = self.mains(me);
        match role {
            Role::Home => mains.iter().any(|main| neighbours.contains(main)),
            Role::Main => {
                mains.iter().all(|main| neighbours.contains(main)) && self.missing(me, neighbours).is_empty()
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.error {
            Some(error) => write!(f, "{} ({error})", self.place),
            None => self.place.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn known(sources: &[(&str, &[PeerId])]) -> Known {
        let sources = sources.iter().map(|(place, found)| Source {
            place: place.parse().unwrap(),
            found: found.to_vec(),
            error: found.is_empty().then(|| "Connection refused".to_owned()),
        });
        Known {
            sources: sources.collect(),
            ..Known::default()
        }
    }

    #[test]
    fn mains_keep_the_order_in_which_they_were_named() {
        let [a, b, c, gone, me] = [(); 5].map(|()| PeerId::random());
        let known = Known {
            at_gateway: vec![a, c, gone],
            wanted: WantedMains {
                removed: BTreeMap::from([(gone, 2)]),
                ..WantedMains::default()
            },
            ..known(&[("b:1", &[b]), ("a:1", &[a, me])])
        };
        assert_eq!(known.mains(me), [b, a, c]);
    }

    #[test]
    fn what_was_found_at_a_place_is_kept_while_others_come_and_go() {
        let [a, b, me] = [(); 3].map(|()| PeerId::random());
        let mut known = known(&[("a:1", &[a]), ("b:1", &[b])]);
        known.want(WantedMains {
            sources: ["c:1", "b:1"].map(|place| place.parse().unwrap()).into(),
            removed: BTreeMap::new(),
        });
        assert_eq!(known.mains(me), [b]);
    }

    #[test]
    fn only_the_mains_that_are_not_reached_are_named_with_the_reason() {
        let [up, down, me] = [(); 3].map(|()| PeerId::random());
        let known = known(&[
            ("up:1", &[up]),
            ("down:1", &[down]),
            ("away:1", &[]),
            ("me:1", &[me]),
        ]);
        let missing: Vec<String> = known.missing(me, &[up]).iter().map(ToString::to_string).collect();
        assert_eq!(missing, ["down:1", "away:1 (Connection refused)"]);
        assert!(!known.is_whole(Role::Main, me, &[up]));
        assert!(known.is_whole(Role::Home, me, &[up]), "a home needs one");
        assert!(!known.is_whole(Role::Home, me, &[]));
    }
}
