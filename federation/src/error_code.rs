//! Why a call has failed, as callers are told over JSON-RPC and HTTP. Decides nothing.

use lapwing_base::PeerId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// One for each thing that a caller can do about it (JSON-RPC 2.0, section 5.1: -32000 to -32099 are ours).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// What came is no JSON.
    ParseError,
    /// What came is JSON and no request.
    InvalidRequest,
    /// There is no such method.
    MethodNotFound,
    /// The method does not take these parameters.
    InvalidParams,
    /// A node has failed at something that is not the caller's doing.
    Internal,
    /// Nobody has announced the service.
    ServiceNotFound,
    /// No node is called so.
    NodeNotFound,
    /// The node is known and not connected.
    NodeOffline,
    /// Every instance is ejected.
    NoHealthyInstance,
    /// A breaker is open.
    CircuitOpen,
    /// The call has crossed as many links as it may.
    HopLimitExceeded,
    /// The call has come back to a node where it had been.
    RoutingLoop,
    /// The next main is not connected.
    PeerUnreachable,
    /// The deadline has passed.
    Timeout,
    /// A queue is full.
    Overloaded,
    /// More calls than are allowed.
    RateLimited,
    /// Nobody known has asked.
    Unauthenticated,
    /// A policy does not let it through.
    ForbiddenByPolicy,
    /// More bytes than are taken.
    PayloadTooLarge,
    /// The service has no version that would do.
    VersionUnsatisfied,
    /// A node has sent what cannot be read.
    MalformedMessage,
    /// Commands wait for each other.
    DependencyCycle,
    /// A command needs a result that there is not.
    DependencyFailed,
    /// The service itself has answered with an error.
    RemoteError,
    /// The same id came with another request before.
    DuplicateRequest,
    /// Whoever was asked is not who decides any more.
    StaleEpoch,
    /// Whoever asked wants no answer any more.
    Cancelled,
}

/// Whether the same call may do better.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// Not without a change.
    Never,
    /// A little later, or over another way.
    Later,
    /// Only where the method may be carried out twice: it may have been carried out.
    IfIdempotent,
}

impl ErrorCode {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::ParseError,
        Self::InvalidRequest,
        Self::MethodNotFound,
        Self::InvalidParams,
        Self::Internal,
        Self::ServiceNotFound,
        Self::NodeNotFound,
        Self::NodeOffline,
        Self::NoHealthyInstance,
        Self::CircuitOpen,
        Self::HopLimitExceeded,
        Self::RoutingLoop,
        Self::PeerUnreachable,
        Self::Timeout,
        Self::Overloaded,
        Self::RateLimited,
        Self::Unauthenticated,
        Self::ForbiddenByPolicy,
        Self::PayloadTooLarge,
        Self::VersionUnsatisfied,
        Self::MalformedMessage,
        Self::DependencyCycle,
        Self::DependencyFailed,
        Self::RemoteError,
        Self::DuplicateRequest,
        Self::StaleEpoch,
        Self::Cancelled,
    ];

    /// The number that a caller sees, its name, and the status of HTTP where there is no JSON-RPC around it.
    const fn row(self) -> (i32, &'static str, u16) {
        match self {
            Self::ParseError => (-32700, "parse_error", 400),
            Self::InvalidRequest => (-32600, "invalid_request", 400),
            Self::MethodNotFound => (-32601, "method_not_found", 404),
            Self::InvalidParams => (-32602, "invalid_params", 400),
            Self::Internal => (-32603, "internal_error", 500),
            Self::ServiceNotFound => (-32001, "service_not_found", 404),
            Self::NodeNotFound => (-32002, "node_not_found", 404),
            Self::NodeOffline => (-32003, "node_offline", 503),
            Self::NoHealthyInstance => (-32004, "no_healthy_instance", 503),
            Self::CircuitOpen => (-32005, "circuit_open", 503),
            Self::HopLimitExceeded => (-32006, "hop_limit_exceeded", 508),
            Self::RoutingLoop => (-32007, "routing_loop", 508),
            Self::PeerUnreachable => (-32008, "peer_unreachable", 502),
            Self::Timeout => (-32009, "timeout", 504),
            Self::Overloaded => (-32010, "overloaded", 503),
            Self::RateLimited => (-32011, "rate_limited", 429),
            Self::Unauthenticated => (-32012, "unauthenticated", 401),
            Self::ForbiddenByPolicy => (-32013, "forbidden_by_policy", 403),
            Self::PayloadTooLarge => (-32014, "payload_too_large", 413),
            Self::VersionUnsatisfied => (-32015, "version_unsatisfied", 409),
            Self::MalformedMessage => (-32016, "malformed_message", 400),
            Self::DependencyCycle => (-32017, "dependency_cycle", 422),
            Self::DependencyFailed => (-32018, "dependency_failed", 422),
            Self::RemoteError => (-32019, "remote_error", 502),
            Self::DuplicateRequest => (-32020, "duplicate_request", 409),
            Self::StaleEpoch => (-32021, "stale_epoch", 409),
            Self::Cancelled => (-32022, "cancelled", 499),
        }
    }

    /// The number in an error object.
    pub const fn number(self) -> i32 {
        self.row().0
    }

    /// The name in its data.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// The status of an answer over plain HTTP; over JSON-RPC it is 200 for whatever a call comes to.
    pub const fn http_status(self) -> u16 {
        self.row().2
    }

    /// Whether the same call may do better.
    pub const fn retry(self) -> Retry {
        match self {
            Self::NodeOffline
            | Self::NoHealthyInstance
            | Self::CircuitOpen
            | Self::PeerUnreachable
            | Self::Overloaded
            | Self::RateLimited
            | Self::StaleEpoch => Retry::Later,
            Self::Timeout => Retry::IfIdempotent,
            Self::ParseError
            | Self::InvalidRequest
            | Self::MethodNotFound
            | Self::InvalidParams
            | Self::Internal
            | Self::ServiceNotFound
            | Self::NodeNotFound
            | Self::HopLimitExceeded
            | Self::RoutingLoop
            | Self::Unauthenticated
            | Self::ForbiddenByPolicy
            | Self::PayloadTooLarge
            | Self::VersionUnsatisfied
            | Self::MalformedMessage
            | Self::DependencyCycle
            | Self::DependencyFailed
            | Self::RemoteError
            | Self::DuplicateRequest
            | Self::Cancelled => Retry::Never,
        }
    }

    /// What the same was called in MPREG, whose clients know these numbers.
    pub const fn mpreg(self) -> Option<u16> {
        match self {
            Self::MalformedMessage => Some(1000),
            Self::ServiceNotFound => Some(1001),
            Self::Internal => Some(1002),
            Self::RemoteError | Self::ForbiddenByPolicy => Some(1003),
            Self::Timeout => Some(1004),
            _ => None,
        }
    }
}

/// A call that has failed, with what the caller needs to know about it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// Why.
    pub code: ErrorCode,
    /// The same for people: a fragment in lower case.
    pub message: String,
    /// Where it has failed; `None` where that is the node that answers.
    pub failed_at: Option<PeerId>,
    /// Not before this the same call may do better.
    pub retry_after: Option<Duration>,
    /// What the service itself has answered.
    pub remote: Option<RemoteError>,
}

/// What a service has answered in place of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoteError {
    /// Its number, whatever that means there.
    pub code: i64,
    /// Its words.
    pub message: String,
    /// Whether it says itself that it is broken, and not that the call is wrong: such count against its health.
    #[serde(default)]
    pub fault: bool,
}

impl RemoteError {
    /// An error that says nothing against the service's health.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            fault: false,
        }
    }
}

impl CallError {
    /// An error of this node.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            failed_at: None,
            retry_after: None,
            remote: None,
        }
    }

    /// The same, with when to try again.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// The `error` of a JSON-RPC answer, where the call has come by these nodes and belongs to this trace.
    pub fn document(&self, me: PeerId, path: &[PeerId], trace_id: &str) -> Value {
        let texts: Vec<String> = path.iter().map(PeerId::to_string).collect();
        let mut data = json!({
            "name": self.code.name(),
            "retryable": self.code.retry() == Retry::Later,
            "failed_at": self.failed_at.unwrap_or(me).to_string(),
            "path": texts,
            "trace_id": trace_id,
        });
        if let Some(after) = self.retry_after {
            data["retry_after_ms"] = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).into();
        }
        if let Some(remote) = &self.remote {
            data["remote"] = json!({ "code": remote.code, "message": remote.message });
        }
        if self.code == ErrorCode::InvalidParams {
            // Clients of the peer-to-peer edge before look for it here.
            data["reason"] = self.message.as_str().into();
        }
        if let Some(mpreg) = self.code.mpreg() {
            data["mpreg_code"] = mpreg.into();
        }
        json!({ "code": self.code.number(), "message": self.message, "data": data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_has_a_number_and_a_name_of_its_own() {
        let numbers: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.number()).collect();
        let names: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        assert_eq!((numbers.len(), names.len()), (27, 27));
    }

    /// A code with its number, its name, its status of HTTP, whether it may be tried again, and what MPREG called it.
    type Row = (ErrorCode, i32, &'static str, u16, Retry, Option<u16>);

    /// Clients, alerts and older programs know these: a row does not change.
    const TABLE: [Row; 27] = {
        use ErrorCode::*;
        use Retry::*;
        [
            (ParseError, -32700, "parse_error", 400, Never, None),
            (InvalidRequest, -32600, "invalid_request", 400, Never, None),
            (MethodNotFound, -32601, "method_not_found", 404, Never, None),
            (InvalidParams, -32602, "invalid_params", 400, Never, None),
            (Internal, -32603, "internal_error", 500, Never, Some(1002)),
            (
                ServiceNotFound,
                -32001,
                "service_not_found",
                404,
                Never,
                Some(1001),
            ),
            (NodeNotFound, -32002, "node_not_found", 404, Never, None),
            (NodeOffline, -32003, "node_offline", 503, Later, None),
            (NoHealthyInstance, -32004, "no_healthy_instance", 503, Later, None),
            (CircuitOpen, -32005, "circuit_open", 503, Later, None),
            (HopLimitExceeded, -32006, "hop_limit_exceeded", 508, Never, None),
            (RoutingLoop, -32007, "routing_loop", 508, Never, None),
            (PeerUnreachable, -32008, "peer_unreachable", 502, Later, None),
            (Timeout, -32009, "timeout", 504, IfIdempotent, Some(1004)),
            (Overloaded, -32010, "overloaded", 503, Later, None),
            (RateLimited, -32011, "rate_limited", 429, Later, None),
            (Unauthenticated, -32012, "unauthenticated", 401, Never, None),
            (
                ForbiddenByPolicy,
                -32013,
                "forbidden_by_policy",
                403,
                Never,
                Some(1003),
            ),
            (PayloadTooLarge, -32014, "payload_too_large", 413, Never, None),
            (
                VersionUnsatisfied,
                -32015,
                "version_unsatisfied",
                409,
                Never,
                None,
            ),
            (
                MalformedMessage,
                -32016,
                "malformed_message",
                400,
                Never,
                Some(1000),
            ),
            (DependencyCycle, -32017, "dependency_cycle", 422, Never, None),
            (DependencyFailed, -32018, "dependency_failed", 422, Never, None),
            (RemoteError, -32019, "remote_error", 502, Never, Some(1003)),
            (DuplicateRequest, -32020, "duplicate_request", 409, Never, None),
            (StaleEpoch, -32021, "stale_epoch", 409, Later, None),
            (Cancelled, -32022, "cancelled", 499, Never, None),
        ]
    };

    #[test]
    fn every_code_is_told_as_the_table_says() {
        assert_eq!(TABLE.map(|(code, ..)| code), ErrorCode::ALL);
        for (code, number, name, status, retry, mpreg) in TABLE {
            let row = (
                code.number(),
                code.name(),
                code.http_status(),
                code.retry(),
                code.mpreg(),
            );
            assert_eq!(row, (number, name, status, retry, mpreg), "{code:?}");
            let document = CallError::new(code, "as it was").document(PeerId::random(), &[], "trace");
            let data = &document["data"];
            assert_eq!((&document["code"], &data["name"]), (&number.into(), &name.into()));
            assert_eq!(data["retryable"], retry == Retry::Later, "{code:?}");
            assert_eq!(data["mpreg_code"].as_u64(), mpreg.map(u64::from), "{code:?}");
        }
    }

    #[test]
    fn an_error_says_where_it_failed_on_which_way_and_when_to_try_again() {
        let (me, far) = (PeerId::random(), PeerId::random());
        let mut error = CallError::new(ErrorCode::CircuitOpen, "the breaker of `blog` is open")
            .with_retry_after(Duration::from_millis(1500));
        error.failed_at = Some(far);
        let document = error.document(me, &[me, far], "trace");
        assert_eq!(document["code"], -32005);
        let data = &document["data"];
        assert_eq!(data["name"], "circuit_open");
        assert_eq!(
            (&data["retryable"], &data["retry_after_ms"]),
            (&true.into(), &1500.into())
        );
        assert_eq!(data["failed_at"], far.to_string());
        assert_eq!(data["path"][1], far.to_string());
        assert!(data.get("remote").is_none() && data.get("mpreg_code").is_none());
    }

    #[test]
    fn wrong_parameters_are_named_in_the_data_too() {
        let error = CallError::new(ErrorCode::InvalidParams, "method is required");
        let document = error.document(PeerId::random(), &[], "trace");
        assert_eq!(document["data"]["reason"], "method is required");
    }

    #[test]
    fn what_a_service_answers_is_told_without_its_inner_life() {
        let mut error = CallError::new(ErrorCode::RemoteError, "`blog` has answered with an error");
        error.remote = Some(RemoteError {
            code: 7,
            message: "no such post".to_owned(),
            fault: false,
        });
        let document = error.document(PeerId::random(), &[], "trace");
        assert_eq!(
            document["data"]["remote"],
            json!({"code": 7, "message": "no such post"})
        );
        assert_eq!(document["data"]["mpreg_code"], 1003);
        assert_eq!(document["data"]["retryable"], false);
    }
}
