//! What `--max-upload` and `--max-download` say, as people write it. Holds nothing to anything: the network does, once
//! names have become peers.

use std::collections::BTreeMap;
use std::str::FromStr;

use lapwing_base::{Bandwidth, CLASSES, Class, Member, PeerId, Roster, nearest};
use lapwing_net::{RateLimits, UnlimitedClass};
use tracing::info;

/// One rate, and what is held to it: `10mbit`, `model=10mbit`, `12D3Koo…=5mbit` or `alice=5mbit`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RateRule {
    whose: Whose,
    rate: Bandwidth,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Whose {
    Node,
    Class(Class),
    Peer(PeerId),
    Name(String),
}

/// All rates of one direction. Default: none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RateRules {
    limits: RateLimits,
    /// Of members that are called so: names are for people, so there may be several, or none.
    names: BTreeMap<String, Bandwidth>,
}

/// It is no rule that can be kept.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RateRuleError {
    /// What it is to be held to.
    #[error("{0}")]
    Rate(String),
    /// A class that nothing may hold up.
    #[error(transparent)]
    Class(#[from] UnlimitedClass),
    /// A word that is nearly a class.
    #[error(
        "`{word}` is no class; did you mean `{class}`? (a node of that name can be limited by its peer id)"
    )]
    Mistyped {
        /// As given.
        word: String,
        /// What was probably meant.
        class: &'static str,
    },
    /// Nobody is called so.
    #[error("a name has 1 to {} bytes, not {length}", Member::NAME_MAX)]
    Name {
        /// Its length in bytes.
        length: usize,
    },
    /// Two rules for one.
    #[error("{0} is held to two rates; give one")]
    Twice(String),
}

impl FromStr for RateRule {
    type Err = RateRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whose, rate) = match text.rsplit_once('=') {
            Some((whose, rate)) => (Whose::parse(whose.trim())?, rate),
            None => (Whose::Node, text),
        };
        let rate = rate
            .parse()
            .map_err(|error: lapwing_base::ParseUnitError| RateRuleError::Rate(error.to_string()))?;
        Ok(Self { whose, rate })
    }
}

impl Whose {
    fn parse(word: &str) -> Result<Self, RateRuleError> {
        if let Some(class) = CLASSES.into_iter().find(|class| class.as_str() == word) {
            return Ok(Self::Class(class));
        }
        if let Ok(peer) = word.parse() {
            return Ok(Self::Peer(peer));
        }
        if let Some(class) = nearest(word, CLASSES.map(Class::as_str)) {
            return Err(RateRuleError::Mistyped {
                word: word.to_owned(),
                class,
            });
        }
        if word.is_empty() || word.len() > Member::NAME_MAX {
            return Err(RateRuleError::Name { length: word.len() });
        }
        Ok(Self::Name(word.to_owned()))
    }

    fn describe(&self) -> String {
        match self {
            Self::Node => "the node".to_owned(),
            Self::Class(class) => format!("class {class}"),
            Self::Peer(peer) => format!("peer {peer}"),
            Self::Name(name) => format!("node {name}"),
        }
    }
}

impl RateRules {
    /// Puts rules together.
    ///
    /// # Errors
    /// [`RateRuleError`] where two are about the same, or one holds up what may not wait.
    pub fn new(rules: impl IntoIterator<Item = RateRule>) -> Result<Self, RateRuleError> {
        let mut all = Self::default();
        for RateRule { whose, rate } in rules {
            let known = match &whose {
                Whose::Node => all.limits.node.replace(rate),
                Whose::Class(class) => {
                    let known = all.limits.class(*class);
                    all.limits.limit_class(*class, rate)?;
                    known
                }
                Whose::Peer(peer) => all.limits.peers.insert(*peer, rate),
                Whose::Name(name) => all.names.insert(name.clone(), rate),
            };
            if known.is_some() {
                return Err(RateRuleError::Twice(whose.describe()));
            }
        }
        Ok(all)
    }

    /// What holds without anybody's name.
    pub(crate) const fn limits(&self) -> &RateLimits {
        &self.limits
    }

    /// What single peers are held to in a cluster of these members: who is named by its peer id, as that says.
    pub(crate) fn peers(&self, roster: &Roster) -> BTreeMap<PeerId, Bandwidth> {
        let mut peers: BTreeMap<PeerId, Bandwidth> = roster
            .members
            .values()
            .filter_map(|member| Some((member.peer, *self.names.get(&member.name)?)))
            .collect();
        peers.extend(&self.limits.peers);
        peers
    }

    /// Says which names nobody has: they may come later, or be mistyped.
    pub(crate) fn tell_of_strangers(&self, roster: &Roster) {
        for name in self.names.keys() {
            if !roster.members.values().any(|member| member.name == *name) {
                info!(name, "no member has this name yet, so its limit holds nobody");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Result<RateRules, RateRuleError> {
        RateRules::new(
            texts
                .iter()
                .map(|text| text.parse())
                .collect::<Result<Vec<_>, _>>()?,
        )
    }

    #[test]
    fn a_node_a_class_a_peer_and_a_name_may_each_have_a_rate() {
        let peer = PeerId::random();
        let of_peer = format!("{peer}=2mbit");
        let rules = rules(&["10mbit", "model=5mbit", &of_peer, "alice=1mbit"]).unwrap();
        assert_eq!(rules.limits.node, Some(Bandwidth::mbit(10)));
        assert_eq!(rules.limits.class(Class::Model), Some(Bandwidth::mbit(5)));
        assert_eq!(rules.limits.peers[&peer], Bandwidth::mbit(2));
        assert_eq!(rules.names["alice"], Bandwidth::mbit(1));
        assert_eq!(RateRules::new([]).unwrap(), RateRules::default());
    }

    #[test]
    fn what_cannot_be_kept_is_refused_and_the_reason_says_what_to_write() {
        for (texts, says) in [
            (&["fast"][..], "a rate such as 500kbit"),
            (&["model=fast"], "a rate such as 500kbit"),
            (&["control=1mbit"], "control may not be limited"),
            (&["modell=1mbit"], "did you mean `model`?"),
            (&["=1mbit"], "a name has 1 to"),
            (&["1mbit", "2mbit"], "the node is held to two rates"),
            (
                &["model=1mbit", "model=1mbit"],
                "class model is held to two rates",
            ),
        ] {
            let error = rules(texts).unwrap_err().to_string();
            assert!(error.contains(says), "{texts:?}: {error}");
        }
    }
}
