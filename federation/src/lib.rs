//! Services that nodes announce, and calls of them, however many links away they are.
//!
//! The cores are pure: the [`Registry`] says who offers what and by which way, a [`Call`] how it goes on from here,
//! a [`Balancer`] and its [`Breaker`]s which instance is called, [`Commands`] in which order several are, and
//! [`Executed`] what was carried out already. They know neither clock nor network.

mod announcement;
mod audit_limit;
mod balancer;
mod balancing;
mod breaker;
mod call;
mod commands;
mod compat;
mod error_code;
mod executed;
mod json_rpc;
mod main_address;
mod names;
mod policy;
mod registry;
mod remote_call;
mod retries;
mod service;
mod span;
mod trace;
mod versions;
mod window;

#[cfg(feature = "driver")]
mod driver;

pub use announcement::{Announcement, AnnouncementError, Departure, Forwarded, SignedAnnouncement, Stamp};
pub use audit_limit::AuditLimit;
pub use balancer::{
    Algorithm, Balancer, Candidate, Chosen, InstanceMetrics, ParseAlgorithmError, Refused, Turned,
};
pub use balancing::Balancing;
pub use breaker::{Breaker, BreakerConfig, Outcome, Ticket, Verdict};
pub use call::{Call, CallAnswer, CallId, Failure, HopTiming, Onward, Step, TraceContext};
pub use commands::{Commands, ExecutionSummary, IntermediateResult, Progress, ReadyCommand};
pub use compat::{
    FederationMessage, MessageAddress, MessageError, MessageKind, Timestamp, WantedOfUs, double_dashed,
};
pub use error_code::{CallError, ErrorCode, RemoteError, Retry};
pub use executed::{Attempt, Executed, ExecutionId, Found};
pub use json_rpc::{Answer, Id, Incoming, Invalid, Parsed, Reply, Request};
pub use main_address::{MainAddress, ParseMainAddressError};
pub use names::{NodeAddress, NodeName, ParseNameError, ServiceName};
pub use policy::{
    Admitted, Around, AuditEvent, Boundary, Claim, NotAdmitted, Policy, Proof, ServiceRule, Token, TokenError,
};
pub use registry::{HearError, Heard, Instance, Message, Registry, ToSend};
pub use remote_call::{Arguments, RemoteCall};
pub use retries::Retries;
pub use service::{Fit, Service, ServiceError, Unfit, Wanted};
pub use span::{Span, SpanKind, SpanStatus};
pub use trace::{ParseTraceParentError, Sampler, TraceParent};
pub use versions::{Constraint, ParseVersionError, Version};

#[cfg(feature = "driver")]
pub use driver::{
    Backend, CallContext, ChildBackend, ChildBackendError, Echo, Exposure, Federation, FederationConfig,
    Headers, HttpBackend, HttpBackendError, HttpConfig, Invocation, Methods, NamedMain, OfferError, Offered,
    PeerChange, router, serve,
};
