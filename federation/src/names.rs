//! What services and nodes are called.

use lapwing_base::{PeerId, Role};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a service is called: as [`NodeName`].
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// What a node is called, or the text of its peer id: up to [`NodeName::MAX`] letters, digits, `-`, `_` and `.`, of which
/// the first and the last are letters or digits.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// Where a call goes: `bob.home@relay-a.com`, `relay-a.com`, `nonexistent.home`.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeAddress {
    /// Which node.
    pub node: NodeName,
    /// What it says of itself; `None` where nothing was said.
    pub role: Option<Role>,
    /// The main by which a home is reached, if it was named.
    pub main: Option<NodeName>,
}

/// A text that is no name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseNameError {
    /// Nothing, or too much.
    #[error("a name has between 1 and {max} characters, not {length}", max = NodeName::MAX)]
    Length {
        /// How many it has.
        length: usize,
    },
    /// A character that names do not have, or not there.
    #[error(
        "`{text}` has `{character}` where a name has none: names are letters, digits, `-`, `_` and `.`, and begin and end with a letter or digit"
    )]
    Character {
        /// As given.
        text: String,
        /// The first that does not belong there.
        character: char,
    },
    /// A main has no other main in front of it.
    #[error("`{text}` names a main behind a main: only a home has an `@`")]
    MainBehindMain {
        /// As given.
        text: String,
    },
    /// A node of one kind is to be called like one of the other.
    #[error(
        "`{text}` ends in `.{said}`, as the address of a {said} does, and this node is a {role}: leave `.{said}` out"
    )]
    OtherRole {
        /// As given.
        text: String,
        /// What the ending says.
        said: Role,
        /// What the node is.
        role: Role,
    },
}

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NodeName {
    /// The longest name in characters, as a name of the internet's: a peer id has 52.
    pub const MAX: usize = 253;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a node is called of which a person says this: an ending that says its kind goes, `.home` or `.main`, since whoever
    /// calls `alice.home` calls the home `alice`, and nobody would reach a node that has all of it for a name. Of a node that
    /// is yet to find out what it is (`None`) either ending goes.
    ///
    /// # Errors
    /// When the ending says another kind, or what is left is no name.
    pub fn own(self, role: Option<Role>) -> Result<Self, ParseNameError> {
        let mut name = self;
        while let Some((rest, said)) = without_role(&name.0) {
            if let Some(role) = role.filter(|role| *role != said) {
                return Err(ParseNameError::OtherRole {
                    text: name.0,
                    said,
                    role,
                });
            }
            name = rest.parse()?;
        }
        Ok(name)
    }
}

impl From<PeerId> for NodeName {
    /// Its text, which is letters and digits.
    fn from(peer: PeerId) -> Self {
        Self(peer.to_string())
    }
}

fn check(text: &str) -> Result<(), ParseNameError> {
    let length = text.chars().count();
    if !(1..=NodeName::MAX).contains(&length) {
        return Err(ParseNameError::Length { length });
    }
    let edges = [text.chars().next(), text.chars().next_back()];
    let is_wrong_edge = |character: &char| !character.is_ascii_alphanumeric();
    let wrong = edges.into_iter().flatten().find(is_wrong_edge).or_else(|| {
        let is_wrong = |character: &char| !character.is_ascii_alphanumeric() && !"-_.".contains(*character);
        text.chars().find(is_wrong)
    });
    match wrong {
        Some(character) => Err(ParseNameError::Character {
            text: text.to_owned(),
            character,
        }),
        None => Ok(()),
    }
}

/// What is in front of the ending that says which kind of node this is, and which.
fn without_role(text: &str) -> Option<(&str, Role)> {
    let roles = [(".home", Role::Home), (".main", Role::Main)];
    roles
        .into_iter()
        .find_map(|(ending, role)| Some((text.strip_suffix(ending)?, role)))
}

/// What both kinds of names are made of and print as.
macro_rules! name {
    ($name:ty) => {
        impl FromStr for $name {
            type Err = ParseNameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseNameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(ServiceName);
name!(NodeName);

impl FromStr for NodeAddress {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, main) = match text.split_once('@') {
            Some((first, main)) => (first, Some(main.parse()?)),
            None => (text, None),
        };
        let (node, role) = match without_role(first) {
            // What is called `.home` and nothing else has no name.
            Some((node, role)) => (node, Some(role)),
            None => (first, main.is_some().then_some(Role::Home)),
        };
        // First, so that no text is repeated that is longer than names are.
        let node = node.parse()?;
        if role == Some(Role::Main) && main.is_some() {
            return Err(ParseNameError::MainBehindMain {
                text: text.to_owned(),
            });
        }
        Ok(Self { node, role, main })
    }
}

impl TryFrom<String> for NodeAddress {
    type Error = ParseNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeAddress> for String {
    fn from(address: NodeAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.node.fmt(f)?;
        match self.role {
            Some(Role::Home) => f.write_str(".home")?,
            Some(Role::Main) => f.write_str(".main")?,
            None => {}
        }
        match &self.main {
            Some(main) => write!(f, "@{main}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_who_behind_which_main_and_prints_as_it_was_written() {
        for (text, node, role, main) in [
            (
                "bob.home@relay-a.com",
                "bob",
                Some(Role::Home),
                Some("relay-a.com"),
            ),
            ("nonexistent.home", "nonexistent", Some(Role::Home), None),
            ("relay-a.main", "relay-a", Some(Role::Main), None),
            ("relay-a.com", "relay-a.com", None, None),
        ] {
            let address: NodeAddress = text.parse().unwrap();
            assert_eq!((address.node.as_str(), address.role), (node, role));
            assert_eq!(address.main.as_ref().map(NodeName::as_str), main);
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn who_is_behind_a_main_is_a_home() {
        let address: NodeAddress = "bob@relay-a.com".parse().unwrap();
        assert_eq!(address.to_string(), "bob.home@relay-a.com");
    }

    #[test]
    fn a_node_is_called_what_is_in_front_of_the_ending_of_its_kind() {
        for (text, role, name) in [
            ("alice", Some(Role::Home), "alice"),
            ("alice.home", Some(Role::Home), "alice"),
            ("alice.home.home", Some(Role::Home), "alice"),
            ("relay-a.com.main", Some(Role::Main), "relay-a.com"),
            ("home", Some(Role::Home), "home"),
            ("sweet.home.org", Some(Role::Main), "sweet.home.org"),
            ("nas.home", None, "nas"),
            ("nas.main", None, "nas"),
        ] {
            let name_of = text.parse::<NodeName>().unwrap().own(role).unwrap();
            assert_eq!(name_of.as_str(), name, "{text}");
        }
        for (text, role, said) in [
            ("alice.main", Role::Home, "this node is a home: leave `.main` out"),
            (
                "relay-a.home",
                Role::Main,
                "this node is a main: leave `.home` out",
            ),
            ("alice.main.home", Role::Home, "`alice.main` ends in `.main`"),
            ("alice..home", Role::Home, "begin and end with a letter"),
        ] {
            let name: NodeName = text.parse().unwrap();
            let error = name.own(Some(role)).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_is_wrong() {
        for (text, said) in [
            ("", "not 0"),
            (".home", "not 0"),
            ("@relay-a", "not 0"),
            ("bob@", "not 0"),
            ("bob smith", "` `"),
            ("-bob", "`-`"),
            ("bob.home@relay-a@relay-b", "`@`"),
            ("relay-b.main@relay-a", "only a home"),
            (&"x".repeat(254), "not 254"),
        ] {
            let error = text.parse::<NodeAddress>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn what_comes_from_outside_is_checked_as_it_is_read() {
        assert!(serde_json::from_str::<ServiceName>("\"blog\"").is_ok());
        assert!(serde_json::from_str::<ServiceName>("\"no such\"").is_err());
        assert!(serde_json::from_str::<NodeAddress>("\"a@b@c\"").is_err());
    }
}
