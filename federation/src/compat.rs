//! Older forms of what we understand: messages in JSON as they crossed WebSockets, and flags with a single dash. Carries
//! nothing and answers nobody.
//!
//! A message is read with [`FederationMessage::parse`], or with [`FederationMessage::adapt`] where it is of the mesh that was
//! there before mains and homes. A request becomes a [`RemoteCall`] by [`FederationMessage::call`], and what comes of that goes
//! back in [`FederationMessage::answer`]. Nothing in a message is proof of who has sent it. The driver takes them at paths of
//! HTTP; what it does with each is said here.

use crate::remote_call::{PRIORITY_MAX, is_message_id};
use crate::service::NAME_MAX;
use crate::{
    Arguments, Call, CallError, CallId, ErrorCode, Incoming, NodeAddress, NodeName, ParseNameError,
    RemoteCall, ServiceName,
};
use lapwing_base::Role;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

/// A message between nodes, in JSON. Members that are not known are left alone; `null`, an empty text and nothing are the
/// same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FederationMessage {
    /// By its sender's count: 1, and later ones are read as far as they are known.
    #[serde(rename = "v")]
    pub version: u32,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: MessageKind,
    /// What its answer is known by: between 1 and 128 visible characters of ASCII.
    pub message_id: String,
    /// Which message it answers. A response has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// When it was written, by its sender's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// Who has written it.
    pub source_node: MessageAddress,
    /// Whom it is for. Requests and responses have one; any other is for whoever it comes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_node: Option<MessageAddress>,
    /// The nodes that have passed it on, each once, and no more than `ttl`.
    pub routing_path: Vec<NodeName>,
    /// How many nodes may pass it on in all: at most [`FederationMessage::TTL_MAX`].
    pub ttl: u8,
    /// The service that a request calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<ServiceName>,
    /// What it calls there: at most 128 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The call as a request of JSON-RPC, in place of `method`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsonrpc_request: Option<Value>,
    /// All else: the `args` of a request, the `result` of a response, the `error` of an error.
    pub data: Map<String, Value>,
    /// Which go first where many wait: the higher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// How long a request waits, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// What a message is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// A home tells a main what it offers.
    Registration,
    /// Somebody is still there.
    Heartbeat,
    /// A call.
    Request,
    /// What a call has come to.
    Response,
    /// Who offers what.
    ServiceDiscovery,
    /// Why a message came to nothing.
    Error,
}

/// What a message wants of the node that it comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum WantedOfUs {
    /// That it calls somebody.
    Call(Box<RemoteCall>),
    /// That it says that it is there.
    SignOfLife,
    /// That it says who offers what.
    Registry,
    /// It is an answer, and this node has asked nothing.
    Nothing,
}

/// A node as messages name it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct MessageAddress {
    /// Main or home.
    #[serde(rename = "type")]
    pub role: Role,
    /// What it calls itself: `alice.home` and `alice` are the same home.
    pub id: NodeName,
    /// The main by which a home is reached.
    #[serde(rename = "main_relay", skip_serializing_if = "Option::is_none")]
    pub main: Option<NodeName>,
}

/// A time as its sender wrote it. Nobody compares it with a clock of another node.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Timestamp {
    /// As in RFC 3339.
    Text(String),
    /// Since 1970, in whatever unit.
    Number(serde_json::Number),
}

/// Bytes that are no message.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// More than are taken.
    #[error("a message of {length} bytes is longer than the {max} that are taken", max = Incoming::BODY_MAX)]
    Length {
        /// How many there are.
        length: usize,
    },
    /// No JSON, or a member that is something else.
    #[error("a message cannot be read: {problem}")]
    Unreadable {
        /// What is wrong.
        problem: String,
    },
    /// A `type` that there is not.
    #[error("there is no message of type `{text}`")]
    Type {
        /// As given, or its beginning.
        text: String,
    },
    /// A member that such a message has.
    #[error("a message has no `{member}`")]
    Missing {
        /// Which.
        member: &'static str,
    },
    /// An id that goes nowhere.
    #[error("`{member}` is to be 1 to 128 visible characters of ASCII")]
    Id {
        /// Which.
        member: &'static str,
    },
    /// A name that is none.
    #[error("`{member}` names nobody: {problem}")]
    Name {
        /// Where it stands.
        member: &'static str,
        /// Why.
        problem: ParseNameError,
    },
    /// Too much time, or less than none.
    #[error("a message may be passed on by 0 to {max} nodes, not {ttl}", max = FederationMessage::TTL_MAX)]
    Ttl {
        /// As given.
        ttl: i64,
    },
    /// It was passed on more often than it may.
    #[error("a message was passed on by {count} nodes and may be by {ttl}")]
    PathTooLong {
        /// By how many.
        count: usize,
        /// By how many it may be.
        ttl: u8,
    },
    /// It has come back to a node.
    #[error("a message was passed on by `{node}` twice")]
    PathTwice {
        /// By which.
        node: NodeName,
    },
}

impl From<MessageError> for CallError {
    fn from(error: MessageError) -> Self {
        let code = match error {
            MessageError::Length { .. } => ErrorCode::PayloadTooLarge,
            _ => ErrorCode::MalformedMessage,
        };
        Self::new(code, error.to_string())
    }
}

impl FederationMessage {
    /// The only one that there has been.
    pub const VERSION: u32 = 1;

    /// By how many nodes a message is passed on if it does not say: more than any way is long.
    pub const TTL_DEFAULT: u8 = 10;

    /// By how many it may be passed on at most.
    pub const TTL_MAX: u8 = 16;

    /// Reads a message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, MessageError> {
        check_length(body)?;
        Given::read(body)?.check()
    }

    /// Reads a message of the mesh that was there before mains and homes: `{"type":"ping","from":"node1","to":"node2"}`. What
    /// is wrapped in a `route_message` is taken out. Most have no id: such get `unnamed`.
    ///
    /// `ping` and `pong` both become a heartbeat, with the one that it was in `data.heartbeat`, so that no pong is answered.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn adapt(body: &[u8], unnamed: CallId) -> Result<Self, MessageError> {
        check_length(body)?;
        let mut mesh: Mesh = serde_json::from_slice(body).map_err(unreadable)?;
        // No deeper than JSON is read.
        while mesh.kind.as_deref() == Some("route_message") {
            let wrapped = mesh.data.unwrap_or_default().remove("routed_message");
            let wrapped = wrapped.ok_or(MessageError::Missing {
                member: "data.routed_message",
            })?;
            mesh = serde_json::from_value(wrapped).map_err(unreadable)?;
        }
        mesh.translate(unnamed)?.check()
    }

    /// Reads a message of either form: one of the mesh says whom it is `from`, and has no `source_node`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(body: &[u8], unnamed: CallId) -> Result<Self, MessageError> {
        #[derive(Deserialize)]
        struct Form {
            source_node: Option<IgnoredAny>,
            from: Option<IgnoredAny>,
        }
        check_length(body)?;
        let form: Form = serde_json::from_slice(body).map_err(unreadable)?;
        match (form.source_node, form.from) {
            (None, Some(_)) => Self::adapt(body, unnamed),
            _ => Self::parse(body),
        }
    }

    /// What whoever has sent it wants of this node.
    ///
    /// # Errors
    /// Why it gets nothing.
    pub fn wanted(&self) -> Result<WantedOfUs, CallError> {
        // What answers something is answered by nothing: two nodes would never come to an end.
        let is_answer = self.correlation_id.is_some()
            || self.data.get("heartbeat").and_then(Value::as_str) == Some("pong");
        match self.kind {
            MessageKind::Request => Ok(WantedOfUs::Call(Box::new(self.call()?))),
            MessageKind::Heartbeat if !is_answer => Ok(WantedOfUs::SignOfLife),
            MessageKind::ServiceDiscovery if !is_answer => Ok(WantedOfUs::Registry),
            MessageKind::Registration => {
                let said = "services are not registered by messages any more: a node offers them that is connected as a home, as \
                            `lapwing relay --connect URL --service NAME=URL` is";
                Err(CallError::new(ErrorCode::MethodNotFound, said))
            }
            MessageKind::Heartbeat
            | MessageKind::ServiceDiscovery
            | MessageKind::Response
            | MessageKind::Error => Ok(WantedOfUs::Nothing),
        }
    }

    /// How many links a call may cross that is made of this message: what is left of its `ttl`, and no more than any may.
    pub fn links_max(&self) -> u8 {
        let passed = u8::try_from(self.routing_path.len()).unwrap_or(u8::MAX);
        self.ttl.saturating_sub(passed).min(Call::LINKS_MAX)
    }

    /// The call that a request is. Where it has a `jsonrpc_request`, that says what is called, as at the edge: `remote_call`,
    /// `service.method`, or with a `server_name` beside it a method of that. Which node is called is the destination, but that
    /// `remote_call` says itself, where it then is a node or any: the destination may only be who takes it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn call(&self) -> Result<RemoteCall, CallError> {
        if self.kind != MessageKind::Request {
            let said = "only a request is a call";
            return Err(CallError::new(ErrorCode::MalformedMessage, said));
        }
        let of_service = |method: &str, args: Value| {
            let mut params = Map::new();
            let service = self.server_name.as_ref().map(ServiceName::as_str);
            params.insert("server_name".to_owned(), service.into());
            params.insert("method".to_owned(), method.into());
            params.insert("args".to_owned(), args);
            RemoteCall::parse(Arguments::Named(params))
        };
        let destination = self.destination_node.as_ref().map(MessageAddress::address);
        let there = |mut call: RemoteCall| {
            call.target = destination;
            call
        };
        let mut call = match &self.jsonrpc_request {
            None => {
                let args = self.data.get("args").cloned().unwrap_or_default();
                there(of_service(self.method.as_deref().unwrap_or_default(), args)?)
            }
            Some(request) => {
                let method = request.get("method").and_then(Value::as_str);
                let params = request.get("params").cloned().unwrap_or_default();
                match method {
                    Some("remote_call") => RemoteCall::parse(params.into())?,
                    Some(method) if self.server_name.is_some() => there(of_service(method, params)?),
                    method => {
                        let direct = RemoteCall::direct(method.unwrap_or_default(), params.into());
                        there(direct.ok_or_else(|| {
                            let said = "`jsonrpc_request` calls neither `remote_call` nor `service.method`";
                            CallError::new(ErrorCode::MethodNotFound, said)
                        })?)
                    }
                }
            }
        };
        call.message_id = Some(self.message_id.clone());
        if let Some(priority) = self.priority {
            // There were no bounds: whatever is beyond ours is the most or the least urgent.
            let most = i64::from(PRIORITY_MAX);
            call.priority = i8::try_from(priority.clamp(-most, most)).unwrap_or_default();
        }
        if let Some(seconds) = self.timeout_seconds {
            let timeout = Duration::from_secs(seconds.into());
            if timeout > RemoteCall::TIMEOUT_MAX {
                let max = RemoteCall::TIMEOUT_MAX.as_secs();
                let said = format!("timeout_seconds is to be at most {max}");
                return Err(CallError::new(ErrorCode::InvalidParams, said));
            }
            call.timeout = timeout;
        }
        Ok(call)
    }

    /// What goes back to whoever has sent this message: a response with the `result`, or an error with the `error`, which is a
    /// document as of [`CallError::document`].
    #[must_use]
    pub fn answer(
        &self,
        me: MessageAddress,
        id: CallId,
        timestamp: Option<Timestamp>,
        outcome: Result<Value, Value>,
    ) -> Self {
        let (kind, member, value) = match outcome {
            Ok(result) => (MessageKind::Response, "result", result),
            Err(document) => (MessageKind::Error, "error", document),
        };
        let data = Map::from_iter([(member.to_owned(), value)]);
        self.reply(kind, me, id, timestamp, data)
    }

    /// A message of a kind that goes back to whoever has sent this one.
    #[must_use]
    pub fn reply(
        &self,
        kind: MessageKind,
        me: MessageAddress,
        id: CallId,
        timestamp: Option<Timestamp>,
        data: Map<String, Value>,
    ) -> Self {
        Self {
            correlation_id: Some(self.message_id.clone()),
            destination_node: Some(self.source_node.clone()),
            priority: self.priority,
            ..Self::of(kind, me, id, timestamp, data)
        }
    }

    /// What whoever has sent a body is told that is no message, with `document` as the `error`. The body's `message_id` is
    /// repeated where it has one.
    #[must_use]
    pub fn refusal(
        body: &[u8],
        me: MessageAddress,
        id: CallId,
        timestamp: Option<Timestamp>,
        document: Value,
    ) -> Self {
        #[derive(Deserialize)]
        struct Named {
            #[serde(alias = "id")]
            message_id: String,
        }
        // It may be wrong in any other way.
        let named = serde_json::from_slice::<Named>(body).map(|named| named.message_id);
        let data = Map::from_iter([("error".to_owned(), document)]);
        Self {
            correlation_id: named.ok().filter(|id| is_message_id(id)),
            ..Self::of(MessageKind::Error, me, id, timestamp, data)
        }
    }

    /// A message for whoever it comes to.
    fn of(
        kind: MessageKind,
        me: MessageAddress,
        id: CallId,
        timestamp: Option<Timestamp>,
        data: Map<String, Value>,
    ) -> Self {
        Self {
            version: Self::VERSION,
            kind,
            message_id: id_text(id),
            correlation_id: None,
            timestamp,
            source_node: me,
            destination_node: None,
            routing_path: Vec::new(),
            ttl: Self::TTL_DEFAULT,
            server_name: None,
            method: None,
            jsonrpc_request: None,
            data,
            priority: None,
            timeout_seconds: None,
        }
    }

    /// Whether it has what such a message needs.
    fn check_kind(&self) -> Result<(), MessageError> {
        let missing = |member| Err(MessageError::Missing { member });
        if self.method.as_ref().is_some_and(|method| method.len() > NAME_MAX) {
            let problem = format!("its `method` has more than {NAME_MAX} bytes");
            return Err(MessageError::Unreadable { problem });
        }
        match self.kind {
            MessageKind::Registration
            | MessageKind::Heartbeat
            | MessageKind::ServiceDiscovery
            // Of what cannot be read nobody knows from whom it has come.
            | MessageKind::Error => Ok(()),
            _ if self.destination_node.is_none() => missing("destination_node"),
            MessageKind::Response if self.correlation_id.is_none() => missing("correlation_id"),
            MessageKind::Request if self.jsonrpc_request.is_some() => Ok(()),
            MessageKind::Request if self.server_name.is_none() => missing("server_name"),
            MessageKind::Request if self.method.is_none() => missing("method"),
            MessageKind::Request | MessageKind::Response => Ok(()),
        }
    }
}

impl fmt::Display for FederationMessage {
    /// JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl MessageKind {
    fn parse(text: &str) -> Result<Self, MessageError> {
        Ok(match text {
            "registration" => Self::Registration,
            "heartbeat" => Self::Heartbeat,
            "request" => Self::Request,
            "response" => Self::Response,
            "service_discovery" => Self::ServiceDiscovery,
            "error" => Self::Error,
            _ => return Err(unknown(text)),
        })
    }
}

impl MessageAddress {
    /// The same as calls name it.
    pub fn address(&self) -> NodeAddress {
        let ending = format!(".{}", self.role);
        let stem = self.id.as_str().strip_suffix(&ending);
        NodeAddress {
            // What is called `-.home` has no shorter name.
            node: stem
                .and_then(|stem| stem.parse().ok())
                .unwrap_or_else(|| self.id.clone()),
            role: Some(self.role),
            main: self.main.clone(),
        }
    }

    /// What calls name so; a main where nothing was said.
    pub fn of(address: NodeAddress) -> Self {
        Self {
            role: address.role.unwrap_or(Role::Main),
            id: address.node,
            main: address.main,
        }
    }

    /// A node of the mesh, which knew no roles: whoever is not called a home could be dialed, as a main can.
    fn of_mesh(text: &str, member: &'static str) -> Result<GivenAddress, MessageError> {
        let wrong = |problem| MessageError::Name { member, problem };
        let address: NodeAddress = text.parse().map_err(wrong)?;
        let (id, main) = text
            .split_once('@')
            .map_or((text, None), |(id, main)| (id, Some(main)));
        Ok(GivenAddress {
            role: Some(address.role.unwrap_or(Role::Main).to_string()),
            id: Some(id.to_owned()),
            main_relay: main.map(str::to_owned),
        })
    }
}

/// A message as it is written.
#[derive(Debug, Default, Deserialize)]
struct Given {
    v: Option<u32>,
    #[serde(rename = "type")]
    kind: Option<String>,
    message_id: Option<String>,
    correlation_id: Option<String>,
    timestamp: Option<Timestamp>,
    source_node: Option<GivenAddress>,
    destination_node: Option<GivenAddress>,
    routing_path: Option<Vec<String>>,
    ttl: Option<i64>,
    server_name: Option<String>,
    method: Option<String>,
    jsonrpc_request: Option<Value>,
    data: Option<Map<String, Value>>,
    priority: Option<i64>,
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
struct GivenAddress {
    #[serde(rename = "type")]
    role: Option<String>,
    id: Option<String>,
    main_relay: Option<String>,
}

impl Given {
    fn read(body: &[u8]) -> Result<Self, MessageError> {
        serde_json::from_slice(body).map_err(unreadable)
    }

    fn check(self) -> Result<FederationMessage, MessageError> {
        let kind = required(self.kind, "type")?;
        let kind = MessageKind::parse(&kind)?;
        let message_id = required(self.message_id, "message_id")?;
        let correlation_id = filled(self.correlation_id);
        let ids = [
            ("message_id", Some(&message_id)),
            ("correlation_id", correlation_id.as_ref()),
        ];
        for (member, id) in ids {
            if id.is_some_and(|id| !is_message_id(id)) {
                return Err(MessageError::Id { member });
            }
        }
        let source = self.source_node.unwrap_or_default();
        let source_node = source.check("source_node")?.ok_or(MessageError::Missing {
            member: "source_node",
        })?;
        let destination = self.destination_node.unwrap_or_default();
        let destination_node = destination.check("destination_node")?;
        let ttl = self.ttl.unwrap_or_else(|| FederationMessage::TTL_DEFAULT.into());
        let ttl = u8::try_from(ttl)
            .ok()
            .filter(|ttl| *ttl <= FederationMessage::TTL_MAX)
            .ok_or(MessageError::Ttl { ttl })?;
        let server_name = filled(self.server_name);
        let server_name = server_name.map(|name| name.parse()).transpose();
        let message = FederationMessage {
            version: self.v.unwrap_or(FederationMessage::VERSION),
            kind,
            message_id,
            correlation_id,
            timestamp: self.timestamp,
            source_node,
            destination_node,
            routing_path: check_path(self.routing_path.unwrap_or_default(), ttl)?,
            ttl,
            server_name: server_name.map_err(|problem| MessageError::Name {
                member: "server_name",
                problem,
            })?,
            method: filled(self.method),
            jsonrpc_request: self.jsonrpc_request,
            data: self.data.unwrap_or_default(),
            priority: self.priority,
            // In Go, 0 is what was not set.
            timeout_seconds: self.timeout_seconds.filter(|seconds| *seconds > 0),
        };
        message.check_kind()?;
        Ok(message)
    }
}

impl GivenAddress {
    /// `None` where nothing is in it: Go writes that for what was not set.
    fn check(self, member: &'static str) -> Result<Option<MessageAddress>, MessageError> {
        let parts = [filled(self.role), filled(self.id), filled(self.main_relay)];
        let [role, id, main] = match parts {
            [None, None, None] => return Ok(None),
            parts => parts,
        };
        let role = match role.as_deref() {
            Some("main") => Role::Main,
            Some("home") => Role::Home,
            _ => {
                let problem = format!("the `type` of `{member}` is `main` or `home`");
                return Err(MessageError::Unreadable { problem });
            }
        };
        let id = id.ok_or_else(|| MessageError::Unreadable {
            problem: format!("`{member}` has no `id`"),
        })?;
        let wrong = |problem| MessageError::Name { member, problem };
        let id = id.parse().map_err(wrong)?;
        let main = main.map(|main| main.parse().map_err(wrong)).transpose()?;
        if role == Role::Main && main.is_some() {
            return Err(wrong(ParseNameError::MainBehindMain {
                text: member.to_owned(),
            }));
        }
        Ok(Some(MessageAddress { role, id, main }))
    }
}

/// The nodes that have passed a message on.
fn check_path(path: Vec<String>, ttl: u8) -> Result<Vec<NodeName>, MessageError> {
    let count = path.len();
    if count > usize::from(ttl) {
        return Err(MessageError::PathTooLong { count, ttl });
    }
    let mut nodes: Vec<NodeName> = Vec::with_capacity(count);
    for text in path {
        let node: NodeName = text.parse().map_err(|problem| MessageError::Name {
            member: "routing_path",
            problem,
        })?;
        if nodes.contains(&node) {
            return Err(MessageError::PathTwice { node });
        }
        nodes.push(node);
    }
    Ok(nodes)
}

/// A message of the mesh.
#[derive(Debug, Deserialize)]
struct Mesh {
    #[serde(rename = "type")]
    kind: Option<String>,
    id: Option<String>,
    from: Option<String>,
    to: Option<String>,
    data: Option<Map<String, Value>>,
    timestamp: Option<Timestamp>,
    route: Option<Vec<String>>,
    /// What is left of it, not what there was.
    ttl: Option<i64>,
    reply_to: Option<String>,
}

/// What a `server_call` has in `data.call`, as a text.
#[derive(Deserialize)]
struct MeshCall {
    server_name: Option<String>,
    method: Option<String>,
    args: Option<Value>,
    /// Nanoseconds, as Go counts time.
    timeout: Option<i64>,
}

/// What a `server_response` has in `data.response`, as a text.
#[derive(Deserialize)]
struct MeshResponse {
    success: bool,
    result: Option<Value>,
    error: Option<String>,
}

impl Mesh {
    fn translate(self, unnamed: CallId) -> Result<Given, MessageError> {
        let kind = required(self.kind, "type")?;
        let from = required(self.from, "from")?;
        let to = required(self.to, "to")?;
        let route = self.route.unwrap_or_default();
        let passed = i64::try_from(route.len()).unwrap_or(i64::MAX);
        let ttl = match self.ttl.unwrap_or_default() {
            // What was not set.
            0 => FederationMessage::TTL_DEFAULT.into(),
            left if left < 0 => left,
            left => left.saturating_add(passed).min(FederationMessage::TTL_MAX.into()),
        };
        let mut data = self.data.unwrap_or_default();
        let mut given = Given {
            message_id: filled(self.id).or_else(|| Some(id_text(unnamed))),
            correlation_id: self.reply_to,
            timestamp: self.timestamp,
            source_node: Some(MessageAddress::of_mesh(&from, "from")?),
            destination_node: Some(MessageAddress::of_mesh(&to, "to")?),
            routing_path: Some(route),
            ttl: Some(ttl),
            ..Given::default()
        };
        let kind = match kind.as_str() {
            "ping" | "pong" => {
                data.insert("heartbeat".to_owned(), kind.into());
                "heartbeat"
            }
            "registry_sync" => "service_discovery",
            "server_call" => {
                let call: MeshCall = inner(&mut data, "call")?;
                let nanoseconds = u64::try_from(call.timeout.unwrap_or_default()).unwrap_or_default();
                given.server_name = call.server_name;
                given.method = call.method;
                // A part of a second is waited for as a whole one.
                given.timeout_seconds =
                    Some(u32::try_from(nanoseconds.div_ceil(1_000_000_000)).unwrap_or(u32::MAX));
                data.insert("args".to_owned(), call.args.unwrap_or_default());
                "request"
            }
            "server_response" => {
                let response: MeshResponse = inner(&mut data, "response")?;
                let (member, value) = if response.success {
                    ("result", response.result.unwrap_or_default())
                } else {
                    ("error", response.error.unwrap_or_default().into())
                };
                data.insert(member.to_owned(), value);
                "response"
            }
            other => return Err(unknown(other)),
        };
        given.kind = Some(kind.to_owned());
        given.data = Some(data);
        Ok(given)
    }
}

/// What is written as JSON in a text of `data`.
fn inner<T: for<'de> Deserialize<'de>>(
    data: &mut Map<String, Value>,
    member: &'static str,
) -> Result<T, MessageError> {
    match data.remove(member) {
        Some(Value::String(text)) => serde_json::from_str(&text).map_err(unreadable),
        _ => Err(MessageError::Unreadable {
            problem: format!("`data.{member}` is to be a text"),
        }),
    }
}

fn check_length(body: &[u8]) -> Result<(), MessageError> {
    let length = body.len();
    if length > Incoming::BODY_MAX {
        return Err(MessageError::Length { length });
    }
    Ok(())
}

fn required(text: Option<String>, member: &'static str) -> Result<String, MessageError> {
    filled(text).ok_or(MessageError::Missing { member })
}

/// An empty text is what Go writes for one that was not set.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// The reader repeats what it has found, which may be as long as a message; so may be a type.
fn unreadable(error: serde_json::Error) -> MessageError {
    MessageError::Unreadable {
        problem: error.to_string().chars().take(SAID_MAX).collect(),
    }
}

fn unknown(kind: &str) -> MessageError {
    MessageError::Type {
        text: kind.chars().take(SAID_MAX).collect(),
    }
}

/// As many characters are told of what was wrong.
const SAID_MAX: usize = 128;

fn id_text(id: CallId) -> String {
    format!("{:032x}", id.0)
}

/// The older names of flags, which were written with one dash.
const FLAGS: [&str; 10] = [
    "add-peer",
    "connect",
    "disable-registry",
    "fallback",
    "host",
    "node-id",
    "node-type",
    "peers",
    "port",
    "server",
];

/// Arguments of a command line with `--server` for `-server`, and so for all older flags, also where their value follows
/// behind a `=`. All else stays as it is, and so does everything behind `--`.
pub fn double_dashed(args: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut is_over = false;
    args.into_iter().map(move |arg| {
        is_over |= arg == "--";
        let text = arg.to_str().unwrap_or_default();
        let name = text.split('=').next().unwrap_or_default();
        match name.strip_prefix('-') {
            Some(flag) if !is_over && FLAGS.contains(&flag) => format!("-{text}").into(),
            _ => arg,
        }
    })
}

#[cfg(test)]
mod tests;
