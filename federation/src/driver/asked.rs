//! What a service is asked over JSON-RPC 2.0, and what its answer means: the same over HTTP and over pipes.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::backend::{CallContext, Invocation};
use crate::{CallError, ErrorCode, RemoteError};

/// The longest answer in bytes: with what is around it, it crosses links in one frame.
pub(super) const ANSWER_MAX: usize = 15 << 20;

/// Of an error's words, in bytes.
const MESSAGE_MAX: usize = 4096;

/// JSON-RPC 2.0, section 5.1: the service itself is broken.
const INTERNAL_ERROR: i64 = -32603;

/// What a service answers: a result or an error, and which request it belongs to.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    /// As it was written; `None` where there is none.
    pub(super) id: Option<&'a RawValue>,
    outcome: Result<&'a RawValue, ReplyError>,
}

#[derive(Debug, Deserialize)]
struct Members<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    /// A `null` is a result, too.
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    error: Option<ReplyError>,
}

#[derive(Debug, Deserialize)]
struct ReplyError {
    code: i64,
    message: String,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

impl<'a> Reply<'a> {
    /// Reads an answer; `None` where it is none.
    pub(super) fn read(text: &'a [u8]) -> Option<Self> {
        let members: Members<'a> = serde_json::from_slice(text).ok()?;
        let outcome = match (members.error, members.result) {
            (Some(error), _) => Err(error),
            (None, result) => Ok(result?),
        };
        Some(Self {
            id: members.id,
            outcome,
        })
    }

    /// The result as it was written, or what whoever called is told. `is_broken` where the service is known to be, whatever
    /// it says.
    pub(super) fn into_outcome(self, is_broken: bool) -> Result<String, CallError> {
        match self.outcome {
            Ok(result) => Ok(result.get().to_owned()),
            Err(ReplyError { code, message }) => {
                let fault = is_broken || code == INTERNAL_ERROR;
                Err(answered(code, message, fault))
            }
        }
    }
}

/// How long the answer is waited for, as services are told.
pub(super) fn remaining_ms(context: &CallContext) -> u64 {
    u64::try_from(context.remaining().as_millis()).unwrap_or(u64::MAX)
}

/// A [`request`] with a member `context` beside those of JSON-RPC, for a service that has no headers to read.
pub(super) fn request_with_context(id: &str, invocation: &Invocation) -> Result<String, CallError> {
    let context = &invocation.context;
    let mut shown = json!({
        "caller": context.caller.to_string(),
        "remaining_ms": remaining_ms(context),
    });
    let trace = &context.trace;
    for (name, text) in [("traceparent", &trace.parent), ("tracestate", &trace.state)] {
        if let Some(text) = text {
            shown[name] = text.as_str().into();
        }
    }
    let mut request = request(id, invocation)?;
    // Its last character is the end of an object that has members.
    request.pop();
    Ok(format!("{request},\"context\":{shown}}}"))
}

/// A request on one line, without its end, where `id` is JSON. Arguments go as they came.
///
/// # Errors
/// When they are no array and no object: whatever else they were would be read as a part of the request around them.
pub(super) fn request(id: &str, invocation: &Invocation) -> Result<String, CallError> {
    let method = Value::from(invocation.method.as_str());
    let params = match &invocation.arguments {
        Some(arguments) => format!(",\"params\":{}", one_line(arguments)?),
        None => String::new(),
    };
    Ok(format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":{method}{params}}}"
    ))
}

fn one_line(arguments: &str) -> Result<String, CallError> {
    let wrong = |_| CallError::new(ErrorCode::InvalidParams, "the arguments are no JSON");
    let params = serde_json::from_str::<&RawValue>(arguments).map_err(wrong)?.get();
    if !params.starts_with(['[', '{']) {
        let said = "the arguments are neither an array nor an object";
        return Err(CallError::new(ErrorCode::InvalidParams, said));
    }
    // Within texts JSON has no bare ends of lines: these are between the others, where a space means the same.
    Ok(params.replace(['\n', '\r'], " "))
}

/// What a service has answered in place of a result.
pub(super) fn answered(code: i64, message: String, fault: bool) -> CallError {
    let mut error = CallError::new(ErrorCode::RemoteError, "the service has answered with an error");
    error.remote = Some(RemoteError {
        code,
        message: shortened(message, MESSAGE_MAX),
        fault,
    });
    error
}

/// A service that has failed without a word of its own. Callers need not know more.
pub(super) fn broken(said: &str) -> CallError {
    answered(INTERNAL_ERROR, said.to_owned(), true)
}

/// At most so many bytes of a text.
pub(super) fn shortened(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::PeerId;

    fn invocation(arguments: Option<&str>) -> Invocation {
        Invocation {
            method: "re\"ad".to_owned(),
            arguments: arguments.map(str::to_owned),
            context: CallContext::new(PeerId::random(), crate::driver::now()),
        }
    }

    fn request(arguments: Option<&str>) -> Result<String, ErrorCode> {
        super::request("7", &invocation(arguments)).map_err(|error| error.code)
    }

    #[test]
    fn what_is_known_of_a_call_is_a_member_beside_what_is_asked() {
        let mut asked = invocation(Some("[1]"));
        asked.context.trace.parent = Some("00-\"\n".to_owned());
        let text = request_with_context("7", &asked).unwrap();
        let caller = asked.context.caller.to_string();
        let expected = json!({
            "jsonrpc": "2.0", "id": 7, "method": "re\"ad", "params": [1],
            "context": {"caller": caller, "remaining_ms": 0, "traceparent": "00-\"\n"},
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        assert!(!text.contains('\n'), "it is one line: {text}");
        assert!(request_with_context("7", &invocation(Some("1"))).is_err());
    }

    #[test]
    fn arguments_go_as_they_came_on_one_line() {
        assert_eq!(
            request(Some("[1.10,\r\n \"a\\nb\"]")),
            Ok(r#"{"jsonrpc":"2.0","id":7,"method":"re\"ad","params":[1.10,   "a\nb"]}"#.to_owned())
        );
        assert!(!request(None).unwrap().contains("params"));
    }

    #[test]
    fn arguments_are_nothing_but_arguments() {
        for wrong in [
            "",
            "1",
            "null",
            "\"a\"",
            "[1],\"method\":\"other\"",
            "[1]}\n{\"id\":8",
        ] {
            assert_eq!(request(Some(wrong)), Err(ErrorCode::InvalidParams), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_a_result_or_an_error() {
        let told = |text: &str| Reply::read(text.as_bytes()).map(|reply| reply.into_outcome(false));
        assert_eq!(
            told(r#"{"id":5,"result":{"a":1.10}}"#),
            Some(Ok("{\"a\":1.10}".to_owned()))
        );
        assert_eq!(
            told(r#"{"id":5,"result":null,"error":null}"#),
            Some(Ok("null".to_owned()))
        );
        for none in ["", "{}", "[]", "hello", r#"{"id":5}"#, r#"{"id":5,"error":"oh"}"#] {
            assert_eq!(told(none), None, "{none}");
        }
        let remote = |text: &str| told(text).unwrap().unwrap_err().remote.unwrap();
        let error = remote(r#"{"id":5,"result":1,"error":{"code":17,"message":"no stock"}}"#);
        assert_eq!((error.code, error.fault), (17, false));
        assert!(remote(r#"{"id":5,"error":{"code":-32603,"message":"oh"}}"#).fault);
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let remote = answered(1, "ä".repeat(5000) + "a", false).remote.unwrap();
        assert_eq!(remote.message.len(), MESSAGE_MAX);
        assert_eq!(shortened("äö".to_owned(), 3), "ä");
    }
}
