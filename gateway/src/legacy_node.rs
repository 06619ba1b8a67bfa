//! A node of the compatible API: what it sends, how it is checked, how it is shown.

use std::fmt;
use std::net::IpAddr;

use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::message::capabilities_problem;
use crate::{Status, UnixTime};

/// A node's name in the compatible API: a number, or a word such as a peer id. 0 is as good as any.
///
/// Digits in quotes are the number, as older gateways took them.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NodeKey {
    /// What older programs use.
    Number(i64),
    /// At most [`NodeKey::BYTES_MAX`] bytes.
    Word(String),
}

/// What a node of the compatible API says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Its name.
    pub node_id: NodeKey,
    /// An IP address or a host name.
    pub ip_address: String,
    /// 1 to 65535.
    pub port: u16,
    /// At most 64 of at most 64 bytes.
    pub capabilities: Vec<String>,
    /// At most [`Profile::METADATA_BYTES_MAX`] bytes of JSON.
    pub metadata: Map<String, Value>,
}

/// A node as the compatible API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct LegacyNode {
    /// What it says of itself.
    pub profile: Profile,
    /// How the gateway sees it.
    pub status: Status,
    /// When it was heard of last.
    pub last_seen: UnixTime,
    /// When it was first heard of.
    pub join_timestamp: UnixTime,
}

/// A node of the compatible API on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredLegacyNode {
    /// What it says of itself.
    pub profile: Profile,
    /// When it was first heard of.
    pub join_timestamp: UnixTime,
    /// When it was heard of, at the time of writing.
    pub last_seen: UnixTime,
}

/// A field is missing or wrong; names it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FieldError {
    /// The body is not a JSON object.
    #[error("the body must be a JSON object")]
    NotAnObject,
    /// Not there.
    #[error("missing required field: {0}")]
    Missing(&'static str),
    /// There, but wrong.
    #[error("invalid field {field}: {problem}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What it should be.
        problem: String,
    },
}

impl NodeKey {
    /// Longest word, in bytes: twice a peer id.
    pub const BYTES_MAX: usize = 128;

    /// Reads the field of a body.
    pub fn from_field(body: &Value, field: &'static str) -> Result<Self, FieldError> {
        let invalid = |problem: String| FieldError::Invalid { field, problem };
        match required(body, field)? {
            Value::Number(number) => number
                .as_i64()
                .map(Self::Number)
                .ok_or_else(|| invalid("must be a whole number of 64 bits".to_owned())),
            Value::String(text) => Self::from_text(text)
                .ok_or_else(|| invalid(format!("must have 1 to {} bytes", Self::BYTES_MAX))),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                Err(invalid("must be an integer or a string".to_owned()))
            }
        }
    }

    /// Reads a query parameter; `None` when it is empty, too long or holds control characters.
    pub fn from_text(text: &str) -> Option<Self> {
        if let Ok(number) = text.trim().parse() {
            return Some(Self::Number(number));
        }
        let fits = (1..=Self::BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        fits.then(|| Self::Word(text.to_owned()))
    }

    /// Whether this is the given word.
    pub fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(own) if own == word)
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Word(word) => word.fmt(f),
        }
    }
}

impl Profile {
    /// Most metadata, in bytes of JSON.
    pub const METADATA_BYTES_MAX: usize = 4096;

    /// Reads the body of `POST /register`.
    pub fn from_body(body: &Value) -> Result<Self, FieldError> {
        let node_id = NodeKey::from_field(body, "node_id")?;
        let ip_address = host(required(body, "ip_address")?)?;
        let port = port(required(body, "port")?)?;
        let capabilities = capabilities(required(body, "capabilities")?)?;
        let metadata = match body.get("metadata") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(metadata)) => metadata.clone(),
            Some(_) => return Err(invalid("metadata", "must be an object")),
        };
        let profile = Self {
            node_id,
            ip_address,
            port,
            capabilities,
            metadata,
        };
        profile.check_metadata()?;
        Ok(profile)
    }

    /// Takes over what an earlier registration said and this one leaves out of its metadata.
    pub fn inherit(&mut self, earlier: &Map<String, Value>) -> Result<(), FieldError> {
        for (key, value) in earlier {
            if !self.metadata.contains_key(key) {
                self.metadata.insert(key.clone(), value.clone());
            }
        }
        self.check_metadata()
    }

    fn check_metadata(&self) -> Result<(), FieldError> {
        let bytes = serde_json::to_vec(&self.metadata).map_or(usize::MAX, |json| json.len());
        if bytes > Self::METADATA_BYTES_MAX {
            let problem = format!("must be at most {} bytes of JSON", Self::METADATA_BYTES_MAX);
            return Err(FieldError::Invalid {
                field: "metadata",
                problem,
            });
        }
        Ok(())
    }
}

impl Serialize for LegacyNode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut node = serializer.serialize_struct("Node", 8)?;
        node.serialize_field("node_id", &self.profile.node_id)?;
        node.serialize_field("ip_address", &self.profile.ip_address)?;
        node.serialize_field("port", &self.profile.port)?;
        node.serialize_field("capabilities", &self.profile.capabilities)?;
        node.serialize_field("status", &self.status)?;
        node.serialize_field("last_seen", &self.last_seen)?;
        node.serialize_field("join_timestamp", &self.join_timestamp)?;
        node.serialize_field("metadata", &self.profile.metadata)?;
        node.end()
    }
}

fn required<'a>(body: &'a Value, field: &'static str) -> Result<&'a Value, FieldError> {
    let body = body.as_object().ok_or(FieldError::NotAnObject)?;
    body.get(field).ok_or(FieldError::Missing(field))
}

fn invalid(field: &'static str, problem: &str) -> FieldError {
    FieldError::Invalid {
        field,
        problem: problem.to_owned(),
    }
}

fn host(value: &Value) -> Result<String, FieldError> {
    value
        .as_str()
        .filter(|text| text.parse::<IpAddr>().is_ok() || is_host_name(text))
        .map(str::to_owned)
        .ok_or_else(|| invalid("ip_address", "must be an IP address or a host name"))
}

/// RFC 1123 names, with the underscores that container networks use.
fn is_host_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A last label of digits alone makes it a mistyped IPv4 address, such as 10.0.0.256.
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 253 && text.split('.').all(is_label) && !text.rsplit('.').next().is_none_or(is_number)
}

fn port(value: &Value) -> Result<u16, FieldError> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        // Older gateways took digits in quotes.
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| invalid("port", "must be an integer from 1 to 65535"))
}

fn capabilities(value: &Value) -> Result<Vec<String>, FieldError> {
    let words = value.as_array().and_then(|list| {
        let words = list.iter().map(|word| word.as_str().map(str::to_owned));
        words.collect::<Option<Vec<_>>>()
    });
    let words = words.ok_or_else(|| invalid("capabilities", "must be a list of strings"))?;
    match capabilities_problem(&words) {
        Some(problem) => Err(FieldError::Invalid {
            field: "capabilities",
            problem,
        }),
        None => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn zero_is_an_id_and_digits_in_quotes_are_a_number() {
        let key = |value: Value| NodeKey::from_field(&json!({ "node_id": value }), "node_id");
        assert_eq!(key(json!(0)), Ok(NodeKey::Number(0)));
        assert_eq!(key(json!("7")), Ok(NodeKey::Number(7)));
        assert_eq!(key(json!("12D3Koo")), Ok(NodeKey::Word("12D3Koo".to_owned())));
        for wrong in [
            json!(null),
            json!(true),
            json!(1.5),
            json!([]),
            json!(""),
            json!("a\nb"),
        ] {
            assert!(key(wrong.clone()).is_err(), "{wrong}");
        }
        assert_eq!(
            NodeKey::from_field(&json!({}), "node_id"),
            Err(FieldError::Missing("node_id"))
        );
    }

    #[test]
    fn a_wrong_field_is_named() {
        let good = json!({"node_id": 1, "ip_address": "10.0.0.1", "port": 5000, "capabilities": ["raft"]});
        assert!(Profile::from_body(&good).is_ok());
        let cases = [
            ("node_id", json!({})),
            ("ip_address", json!("10.0.0.256")),
            ("ip_address", json!("no spaces")),
            ("ip_address", json!("")),
            ("ip_address", json!(7)),
            ("port", json!(0)),
            ("port", json!(65536)),
            ("port", json!(-1)),
            ("port", json!(1.5)),
            ("capabilities", json!("raft")),
            ("capabilities", json!([1])),
            ("capabilities", json!(vec!["x"; 65])),
            ("capabilities", json!(["x".repeat(65)])),
            ("metadata", json!([])),
            ("metadata", json!({ "x": "y".repeat(4096) })),
        ];
        for (field, value) in cases {
            let mut body = good.clone();
            body[field] = value;
            let error = Profile::from_body(&body).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
        for field in ["node_id", "ip_address", "port", "capabilities"] {
            let mut body = good.clone();
            body.as_object_mut().unwrap().remove(field);
            assert_eq!(Profile::from_body(&body), Err(FieldError::Missing(field)));
        }
    }

    #[test]
    fn addresses_and_host_names_are_taken() {
        for good in [
            "127.0.0.1",
            "::1",
            "localhost",
            "node-1.example.com.",
            "my_service",
            "3com.net",
        ] {
            assert!(host(&json!(good)).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_node_is_shown_with_exactly_eight_keys() {
        let body = json!({"node_id": 0, "ip_address": "::1", "port": 1, "capabilities": []});
        let node = LegacyNode {
            profile: Profile::from_body(&body).unwrap(),
            status: Status::Active,
            last_seen: UnixTime(2.5),
            join_timestamp: UnixTime(1.5),
        };
        let expected = json!({"node_id": 0, "ip_address": "::1", "port": 1, "capabilities": [],
            "status": "active", "last_seen": 2.5, "join_timestamp": 1.5, "metadata": {}});
        assert_eq!(serde_json::to_value(&node).unwrap(), expected);
    }
}
