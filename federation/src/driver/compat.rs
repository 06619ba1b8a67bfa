//! WebSockets for programs that speak in older messages: each is read, carried out as at `/rpc`, and answered. What a message is
//! and wants is in [`crate::compat`].
//!
//! One task has a socket, with all that it asks: where it goes, so does that.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use rand::RngExt as _;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::documents::{Page, Scope, time_text};
use super::edge::Headers;
use super::http::{Edge, Failure, token};
use crate::compat::{FederationMessage, MessageAddress, MessageKind, Timestamp, WantedOfUs};
use crate::{CallError, CallId, ErrorCode, Incoming, RemoteCall, Token};

/// WebSockets at a time: they are for the programs of this house, not for a public.
pub(super) const SOCKETS_MAX: usize = 256;

/// Requests that one socket has in hand; of more its caller is told that there are too many.
const IN_HAND_MAX: usize = 64;

/// Malformed messages one after another, after which whoever sends them is taken to mean none.
const MALFORMED_MAX: usize = 16;

/// A socket on which nothing comes for so long is asked whether anybody is there.
const PING_AFTER: Duration = Duration::from_secs(30);

/// So long nothing may come: three questions.
const SILENT_MAX: Duration = Duration::from_secs(90);

/// How long a caller may leave an answer unread.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);

/// A thousand idle sockets have 8 MB of these.
const READ_BUFFER: usize = 8 * 1024;

/// When to try again where a socket has as much in hand as it may.
const BUSY_FOR: Duration = Duration::from_millis(100);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Answers who wants a WebSocket, and has one run where it is.
pub(super) async fn upgrade(State(edge): State<Arc<Edge>>, mut request: Request) -> Response {
    let Some(key) = key(request.headers()) else {
        let said = "this path takes WebSockets, version 13, only";
        let failure = Failure::new(StatusCode::UPGRADE_REQUIRED, said).hint("calls are taken at POST /rpc");
        let mut response = failure.into_response();
        for (name, value) in [
            (header::UPGRADE, "websocket"),
            (header::CONNECTION, "upgrade"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
        ] {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        return response;
    };
    let Ok(place) = Arc::clone(&edge.sockets).try_acquire_owned() else {
        let said = "this node has as many WebSockets as it takes";
        return Failure::new(StatusCode::SERVICE_UNAVAILABLE, said)
            .hint("close one, or use POST /rpc")
            .into_response();
    };
    let token = token(request.headers());
    let upgrading = hyper::upgrade::on(&mut request);
    let inner = Arc::clone(&edge.federation.inner);
    let stop = inner.stop.clone();
    // It outlives the connection that it came on, and ends with the node.
    inner.tasks.spawn(async move {
        run(edge, upgrading, token, stop).await;
        drop(place);
    });
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(accept) = accept {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// What whoever wants a WebSocket has drawn for it (RFC 6455, section 4.2.1); `None` where nobody wants one.
fn key(headers: &HeaderMap) -> Option<HeaderValue> {
    let has = |name: header::HeaderName, token: &str| {
        let values = headers.get_all(name).into_iter();
        values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    let is_wanted = has(header::UPGRADE, "websocket")
        && has(header::CONNECTION, "upgrade")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    headers
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|_| is_wanted)
        .cloned()
}

async fn run(edge: Arc<Edge>, upgrading: OnUpgrade, token: Option<Token>, stop: CancellationToken) {
    let upgraded = match stop.run_until_cancelled(upgrading).await {
        Some(Ok(upgraded)) => TokioIo::new(upgraded),
        Some(Err(error)) => return debug!(%error, "a connection did not become a WebSocket"),
        None => return,
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        // Nothing waits for company.
        .write_buffer_size(0)
        .max_frame_size(Some(Incoming::BODY_MAX))
        .max_message_size(Some(Incoming::BODY_MAX));
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await;
    let conversation = Conversation { edge: &edge, token };
    let (code, reason) = tokio::select! {
        ended = conversation.hold(&mut socket) => match ended {
            Some(ended) => ended,
            None => return,
        },
        () = stop.cancelled() => (CloseCode::Away, "the node ends"),
    };
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    // Whoever does not read that it ends sees the connection close.
    let _ = timeout(SEND_TIMEOUT, socket.close(Some(frame))).await;
}

/// One socket, and what its caller knows.
struct Conversation<'a> {
    edge: &'a Arc<Edge>,
    token: Option<Token>,
}

/// Why a socket is closed by this node.
type Ended = (CloseCode, &'static str);

impl Conversation<'_> {
    /// Answers until there is a reason to close the socket; `None` where it is closed already.
    async fn hold(&self, socket: &mut Socket) -> Option<Ended> {
        let mut running: FuturesUnordered<BoxFuture<'_, FederationMessage>> = FuturesUnordered::new();
        let mut malformed = 0;
        let mut heard_at = Instant::from_std(super::now());
        let mut ping_at = heard_at + PING_AFTER;
        loop {
            let answer = tokio::select! {
                // Answers go before anything more is read: whoever asks faster than it reads waits for itself.
                biased;
                Some(answer) = running.next() => Message::text(answer.to_string()),
                heard = socket.next() => {
                    let message = match heard? {
                        Ok(message) => message,
                        Err(Error::Capacity(_)) => return Some((CloseCode::Size, "a message is too long")),
                        Err(error) => {
                            debug!(%error, "a WebSocket broke");
                            return None;
                        }
                    };
                    heard_at = Instant::from_std(super::now());
                    ping_at = heard_at + PING_AFTER;
                    let text = match &message {
                        Message::Text(text) => text.as_bytes(),
                        Message::Binary(bytes) => bytes,
                        // Pings are answered beneath this, and so is a farewell, with which the messages end.
                        _ => continue,
                    };
                    match self.take(text, running.len()) {
                        Ok(Some(work)) => {
                            malformed = 0;
                            running.push(work);
                            continue;
                        }
                        Ok(None) => {
                            malformed = 0;
                            continue;
                        }
                        Err(_) if malformed == MALFORMED_MAX => {
                            return Some((CloseCode::Policy, "too many malformed messages"));
                        }
                        Err(error) => {
                            malformed += 1;
                            Message::text(error.to_string())
                        }
                    }
                }
                () = sleep_until(ping_at) => {
                    if ping_at >= heard_at + SILENT_MAX {
                        return Some((CloseCode::Away, "nothing has come for too long"));
                    }
                    ping_at += PING_AFTER;
                    Message::Ping(Vec::new().into())
                }
            };
            match timeout(SEND_TIMEOUT, socket.send(answer)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    debug!(%error, "a WebSocket takes no answer");
                    return None;
                }
                Err(_) => {
                    debug!("a WebSocket leaves an answer unread");
                    return None;
                }
            }
        }
    }

    /// What is to be done for a message, if anything, and what comes of it.
    ///
    /// # Errors
    /// What whoever has sent it is told, where it is none.
    fn take(
        &self,
        body: &[u8],
        in_hand: usize,
    ) -> Result<Option<BoxFuture<'_, FederationMessage>>, Box<FederationMessage>> {
        let message = FederationMessage::read(body, self.draw()).map_err(|error| {
            let error = CallError::from(error);
            self.edge
                .federation
                .inner
                .lock()
                .counts
                .on_request(Some(error.code));
            let document = self.document(&error);
            let (me, id, at) = self.head();
            Box::new(FederationMessage::refusal(body, me, id, at, document))
        })?;
        let wanted = message.wanted();
        let work = match wanted {
            Ok(WantedOfUs::Nothing) => return Ok(None),
            Ok(WantedOfUs::SignOfLife) => {
                let data = Map::from_iter([("heartbeat".to_owned(), "pong".into())]);
                self.told(&message, MessageKind::Heartbeat, data)
            }
            Ok(WantedOfUs::Registry) => {
                let registry = self.registry(&message.data);
                self.told(&message, MessageKind::ServiceDiscovery, registry)
            }
            Ok(WantedOfUs::Call(_)) if in_hand >= IN_HAND_MAX => {
                let said = format!("this WebSocket has {IN_HAND_MAX} requests in hand");
                let error = CallError::new(ErrorCode::Overloaded, said).with_retry_after(BUSY_FOR);
                self.call(message, Err(error)).boxed()
            }
            Ok(WantedOfUs::Call(asked)) => self.call(message, Ok(*asked)).boxed(),
            Err(error) => self.call(message, Err(error)).boxed(),
        };
        Ok(Some(work))
    }

    /// Something that is known already.
    fn told(
        &self,
        message: &FederationMessage,
        kind: MessageKind,
        data: Map<String, Value>,
    ) -> BoxFuture<'static, FederationMessage> {
        let (me, id, at) = self.head();
        std::future::ready(message.reply(kind, me, id, at, data)).boxed()
    }

    async fn call(
        &self,
        message: FederationMessage,
        asked: Result<RemoteCall, CallError>,
    ) -> FederationMessage {
        let seat = asked.and_then(|asked| self.edge.seat().map(|seat| (asked, seat)));
        let (asked, _seat) = match seat {
            Ok((mut asked, seat)) => {
                // Programs count their messages: what one calls its first is not what another does.
                let (source, id) = (&message.source_node.id, &message.message_id);
                asked.message_id = Some(format!("{source} {id}"));
                (Ok(asked), Some(seat))
            }
            Err(error) => (Err(error), None),
        };
        let headers = Headers {
            is_root: true,
            token: self.token.clone(),
            request_id: Some(message.message_id.clone()),
            ..Headers::default()
        };
        let federation = &self.edge.federation;
        let (outcome, trace) = federation.answer_call(asked, message.links_max(), &headers).await;
        let (me, id, at) = self.head();
        let mut answer = message.answer(me, id, at, outcome);
        if let Some(trace) = trace {
            answer.data.insert("trace".to_owned(), trace);
        }
        answer
    }

    /// What `/federation/registry` has, of which a message may want a part.
    fn registry(&self, data: &Map<String, Value>) -> Map<String, Value> {
        // Older programs send what they know themselves, in whatever form.
        let page: Page = serde_json::from_value(data.clone().into()).unwrap_or_default();
        let document = self
            .edge
            .federation
            .inner
            .registry_document(Scope::Federated, &page);
        match document {
            Value::Object(members) => members,
            other => Map::from_iter([("registry".to_owned(), other)]),
        }
    }

    fn document(&self, error: &CallError) -> Value {
        let trace = format!("{:032x}", self.draw().0);
        error.document(self.edge.federation.inner.me, &[], &trace)
    }

    /// What every message of this node begins with.
    fn head(&self) -> (MessageAddress, CallId, Option<Timestamp>) {
        let inner = &self.edge.federation.inner;
        let me = MessageAddress::of(inner.lock().registry.address(inner.me));
        (me, self.draw(), Some(Timestamp::Text(time_text())))
    }

    fn draw(&self) -> CallId {
        CallId::drawn(self.edge.federation.inner.lock().rng.random())
    }
}
