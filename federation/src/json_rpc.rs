//! Requests and answers of JSON-RPC 2.0, as they stand in the bodies of HTTP. Knows no method and carries nothing out.
//!
//! Read a body with [`Incoming::parse`], make an [`Answer`] for each entry that is to have one, and send the [`Reply`].

use crate::{Arguments, CallError, ErrorCode};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;

/// What a body asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// One thing, or nothing that could be read: the answer stands alone.
    Single(Parsed),
    /// Between one and [`Incoming::BATCH_MAX`], in order: the answers come as an array.
    Batch(Vec<Parsed>),
}

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// To be carried out.
    Request(Request),
    /// To be answered with an error.
    Invalid(Invalid),
}

/// A method that is to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What its answer is known by; `None` is a notification, which has no answer.
    pub id: Option<Id>,
    /// Its name, which may be any text.
    pub method: String,
    /// What it is given: absent, an array or an object, as it was sent.
    pub params: Arguments,
}

/// What is no request.
#[derive(Clone, Debug, PartialEq)]
pub struct Invalid {
    /// As it was sent, where that could be read; `null` otherwise.
    pub id: Id,
    /// What is wrong: a [`ErrorCode::ParseError`], [`ErrorCode::InvalidRequest`] or [`ErrorCode::PayloadTooLarge`].
    pub error: CallError,
}

/// A text, a number or `null` by which a caller knows its answer again: kept as JSON, never looked into, and sent back as it
/// came.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Id(Cow<'static, str>);

/// What comes of a request that is no notification.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    id: Id,
    outcome: Outcome,
    trace: Option<Value>,
    /// Of HTTP, where it stands alone.
    status: u16,
}

/// An answer of HTTP.
#[must_use]
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// JSON; `None` where nobody has asked for an answer.
    pub body: Option<String>,
    /// What its caller calls the one call that was asked for.
    pub message_id: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Result(Value),
    Error(Value),
}

impl Incoming {
    /// The longest body in bytes. Whoever reads one from a connection may stop after one more: what comes of it is the same.
    pub const BODY_MAX: usize = 1024 * 1024;

    /// The longest batch: its entries are carried out side by side, and no caller should have more of a node than this.
    pub const BATCH_MAX: usize = 100;

    /// Reads a body.
    pub fn parse(body: &[u8]) -> Self {
        match Self::read(body) {
            Ok(incoming) => incoming,
            Err(error) => Self::Single(Parsed::Invalid(Invalid { id: Id::NULL, error })),
        }
    }

    fn read(body: &[u8]) -> Result<Self, CallError> {
        if body.len() > Self::BODY_MAX {
            let message = format!(
                "the body has more than the {} bytes that are taken",
                Self::BODY_MAX
            );
            return Err(CallError::new(ErrorCode::PayloadTooLarge, message));
        }
        let no_json = |error: &dyn fmt::Display| {
            CallError::new(ErrorCode::ParseError, format!("the body is no JSON: {error}"))
        };
        let text = str::from_utf8(body).map_err(|error| no_json(&error))?;
        // Not deeper than 128 levels, which are taken from the stack.
        let value = serde_json::from_str(text).map_err(|error| no_json(&error))?;
        let values = match value {
            Value::Array(values) => values,
            value => return Ok(Self::Single(Parsed::new(value, text))),
        };
        if !(1..=Self::BATCH_MAX).contains(&values.len()) {
            let (count, max) = (values.len(), Self::BATCH_MAX);
            let message = format!("a batch has between 1 and {max} requests, not {count}");
            return Err(CallError::new(ErrorCode::InvalidRequest, message));
        }
        let mut texts = parts(text);
        let parse = |value| Parsed::new(value, texts.next().unwrap_or_default());
        Ok(Self::Batch(values.into_iter().map(parse).collect()))
    }
}

impl Parsed {
    /// `text` is what `value` was read from.
    fn new(value: Value, text: &str) -> Self {
        let Value::Object(mut members) = value else {
            return Self::invalid(Id::NULL, "a request is an object");
        };
        let id = match members.remove("id") {
            None => None,
            Some(value) => match Id::new(&value, text) {
                None => return Self::invalid(Id::NULL, "`id` is a text, a number or null"),
                id => id,
            },
        };
        match read_call(members) {
            Ok((method, params)) => Self::Request(Request { id, method, params }),
            Err(message) => Self::invalid(id.unwrap_or(Id::NULL), message),
        }
    }

    fn invalid(id: Id, message: &str) -> Self {
        let error = CallError::new(ErrorCode::InvalidRequest, message);
        Self::Invalid(Invalid { id, error })
    }
}

/// Members that the specification does not know are left alone.
fn read_call(mut members: Map<String, Value>) -> Result<(String, Arguments), &'static str> {
    if members.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err("`jsonrpc` is to be \"2.0\"");
    }
    let method = match members.remove("method") {
        Some(Value::String(method)) if !method.is_empty() => method,
        _ => return Err("`method` is to be a text that is not empty"),
    };
    let params = match members.remove("params") {
        None => Arguments::None,
        Some(Value::Array(values)) => Arguments::Positional(values),
        Some(Value::Object(members)) => Arguments::Named(members),
        Some(_) => return Err("`params` is an array or an object, or absent"),
    };
    Ok((method, params))
}

impl Invalid {
    /// The answer to it, with what `document` makes of the error.
    pub fn answer(self, document: impl FnOnce(&CallError) -> Value) -> Answer {
        Answer {
            status: self.error.code.http_status(),
            ..Answer::error(self.id, document(&self.error))
        }
    }
}

impl Id {
    /// What an answer has where no id could be read.
    pub const NULL: Self = Self(Cow::Borrowed("null"));

    /// `None` where `value` is nothing that may be an id; `request` is the text of the object that it is in.
    fn new(value: &Value, request: &str) -> Option<Self> {
        let json = match value {
            Value::Null => return Some(Self::NULL),
            // What is read as a float comes out otherwise: 1.10 as 1.1, and integers beyond 64 bits rounded. Its caller would
            // not know it again.
            Value::Number(number) if number.is_f64() => match written_id(request) {
                Some(written) => written.to_owned(),
                None => number.to_string(),
            },
            Value::Number(_) | Value::String(_) => value.to_string(),
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
        };
        Some(Self(Cow::Owned(json)))
    }
}

impl fmt::Display for Id {
    /// JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How `id` is written in `request`, an object that has been read as JSON; the last, where it has several, as the reader
/// takes it.
fn written_id(request: &str) -> Option<&str> {
    let member = |part| {
        // The name may have escapes.
        let mut names = serde_json::Deserializer::from_str(part).into_iter::<String>();
        let name = names.next()?.ok()?;
        let value = part.get(names.byte_offset()..)?.trim_start().strip_prefix(':')?;
        (name == "id").then(|| value.trim())
    };
    parts(request).filter_map(member).last()
}

/// What is between the outer commas of `text`, an array or object that has been read as JSON.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let mut is_in_text = false;
    let mut is_escaped = false;
    let mut start = 0;
    text.bytes().enumerate().filter_map(move |(at, byte)| {
        if is_in_text {
            is_in_text = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            return None;
        }
        match byte {
            b'"' => is_in_text = true,
            b'[' | b'{' => {
                depth += 1;
                if depth == 1 {
                    start = at + 1;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let is_end = match byte {
            b',' => depth == 1,
            b']' | b'}' => depth == 0,
            _ => false,
        };
        if !is_end {
            return None;
        }
        let part = text.get(start..at);
        start = at + 1;
        part
    })
}

impl Answer {
    /// The request has come to this.
    pub fn result(id: Id, result: Value) -> Self {
        Self::new(id, Outcome::Result(result))
    }

    /// It has failed; `document` is an error object, as of [`CallError::document`].
    pub fn error(id: Id, document: Value) -> Self {
        Self::new(id, Outcome::Error(document))
    }

    /// The same, with the way it has come beside it.
    #[must_use]
    pub fn with_trace(mut self, trace: Value) -> Self {
        self.trace = Some(trace);
        self
    }

    fn new(id: Id, outcome: Outcome) -> Self {
        Self {
            id,
            outcome,
            trace: None,
            status: STATUS_OK,
        }
    }
}

impl fmt::Display for Answer {
    /// JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = match &self.outcome {
            Outcome::Result(value) => ("result", value),
            Outcome::Error(value) => ("error", value),
        };
        write!(f, r#"{{"jsonrpc":"2.0","id":{},"{name}":{value}"#, self.id)?;
        if let Some(trace) = &self.trace {
            write!(f, r#","trace":{trace}"#)?;
        }
        f.write_str("}")
    }
}

/// Also where a call has failed: what HTTP was asked for, it has done.
const STATUS_OK: u16 = 200;
const STATUS_NO_CONTENT: u16 = 204;

impl Reply {
    /// To a body with one entry; a notification has no answer.
    pub fn single(answer: Option<Answer>) -> Self {
        match answer {
            Some(answer) => Self {
                status: answer.status,
                body: Some(answer.to_string()),
                message_id: None,
            },
            None => Self::EMPTY,
        }
    }

    /// To a batch: one for each of its entries, of which notifications have none.
    pub fn batch(answers: impl IntoIterator<Item = Option<Answer>>) -> Self {
        let texts: Vec<String> = answers
            .into_iter()
            .flatten()
            .map(|answer| answer.to_string())
            .collect();
        if texts.is_empty() {
            return Self::EMPTY;
        }
        Self {
            status: STATUS_OK,
            body: Some(format!("[{}]", texts.join(","))),
            message_id: None,
        }
    }

    const EMPTY: Self = Self {
        status: STATUS_NO_CONTENT,
        body: None,
        message_id: None,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_request_has_its_id_its_method_and_its_params_as_they_were_sent() {
        let named = json!({"a": 1});
        for (params, expected) in [
            (None, Arguments::None),
            (Some(json!([])), Arguments::Positional(vec![])),
            (
                Some(json!([42, null])),
                Arguments::Positional(vec![json!(42), json!(null)]),
            ),
            (
                Some(named.clone()),
                Arguments::Named(named.as_object().unwrap().clone()),
            ),
        ] {
            let mut body = json!({"jsonrpc": "2.0", "id": 1, "method": "subtract", "extra": true});
            if let Some(params) = params {
                body["params"] = params;
            }
            let request = request(&body.to_string());
            assert_eq!((request.method.as_str(), request.params), ("subtract", expected));
            assert_eq!(request.id.unwrap().to_string(), "1");
        }
    }

    #[test]
    fn without_an_id_it_is_a_notification_and_with_null_it_is_not() {
        assert_eq!(request(r#"{"jsonrpc":"2.0","method":"m"}"#).id, None);
        assert_eq!(
            request(r#"{"jsonrpc":"2.0","method":"m","id":null}"#).id,
            Some(Id::NULL)
        );
    }

    #[test]
    fn an_id_goes_back_as_it_was_written() {
        for id in [
            "0",
            "-1",
            "18446744073709551615",
            "340282366920938463463374607431768211455",
            "1.10",
            "-0",
            "1.0",
            "1E2",
            "1e-7",
            // serde_json reads it as the number beside it.
            "0.9937135890470127",
            "9007199254740993.0",
            "null",
            r#""""#,
            r#""a\"b\\""#,
            r#""é""#,
        ] {
            for body in [
                format!(r#"{{"jsonrpc":"2.0","method":"m","id":{id}}}"#),
                format!(
                    r#" {{ "id" : {id} , "params" : {{"id": 2.50, "x": "}},\"id\":3.50"}} , "method":"m","jsonrpc":"2.0"}} "#
                ),
                format!(r#"{{"id":7.70,"jsonrpc":"2.0","method":"m","\u0069d":{id}}}"#),
            ] {
                assert_eq!(request(&body).id.unwrap().to_string(), id, "{body}");
                let Incoming::Batch(entries) = Incoming::parse(format!("[1.50, {body},[2.5]]").as_bytes())
                else {
                    panic!("no batch: {body}");
                };
                let Parsed::Request(request) = &entries[1] else {
                    panic!("no request: {body}");
                };
                assert_eq!(request.id.as_ref().unwrap().to_string(), id, "{body}");
            }
        }
    }

    #[test]
    fn an_entry_that_is_no_request_is_refused_under_its_id_where_that_can_be_read() {
        for (entry, id, said) in [
            (r#"{"id":1,"method":"m"}"#, "1", "jsonrpc"),
            (r#"{"id":1.50,"jsonrpc":"1.0","method":"m"}"#, "1.50", "jsonrpc"),
            (r#"{"id":1,"jsonrpc":2.0,"method":"m"}"#, "1", "jsonrpc"),
            (r#"{"id":"x","jsonrpc":"2.0"}"#, r#""x""#, "method"),
            (r#"{"id":1,"jsonrpc":"2.0","method":1}"#, "1", "method"),
            (r#"{"id":1,"jsonrpc":"2.0","method":null}"#, "1", "method"),
            (r#"{"id":1,"jsonrpc":"2.0","method":""}"#, "1", "method"),
            (
                r#"{"id":1,"jsonrpc":"2.0","method":"m","params":null}"#,
                "1",
                "params",
            ),
            (
                r#"{"id":1,"jsonrpc":"2.0","method":"m","params":"bar"}"#,
                "1",
                "params",
            ),
            (
                r#"{"id":1,"jsonrpc":"2.0","method":"m","params":1}"#,
                "1",
                "params",
            ),
            (r#"{"id":true,"jsonrpc":"2.0","method":"m"}"#, "null", "id"),
            (r#"{"id":[1],"jsonrpc":"2.0","method":"m"}"#, "null", "id"),
            (r#"{"id":{},"jsonrpc":"2.0","method":"m"}"#, "null", "id"),
            (r#"{"jsonrpc":"2.0","method":"m","params":1}"#, "null", "params"),
            (r#"{"foo":"boo"}"#, "null", "jsonrpc"),
            ("{}", "null", "jsonrpc"),
            ("1", "null", "object"),
            ("\"text\"", "null", "object"),
            ("null", "null", "object"),
        ] {
            let Incoming::Single(Parsed::Invalid(invalid)) = Incoming::parse(entry.as_bytes()) else {
                panic!("taken: {entry}");
            };
            assert_eq!(
                (invalid.id.to_string().as_str(), invalid.error.code),
                (id, ErrorCode::InvalidRequest)
            );
            assert!(invalid.error.message.contains(said), "{entry}: {}", invalid.error);
            let Incoming::Batch(entries) = Incoming::parse(format!("[{entry}]").as_bytes()) else {
                panic!("no batch: {entry}");
            };
            assert_eq!(entries, [Parsed::Invalid(invalid)]);
        }
    }

    #[test]
    fn a_body_that_is_nothing_has_one_answer_without_an_id() {
        let deep = "[".repeat(100_000);
        for (body, code, status) in [
            (&b""[..], ErrorCode::ParseError, 400),
            (b"{", ErrorCode::ParseError, 400),
            (
                br#"{"jsonrpc":"2.0","method":"foobar,"params":"bar","baz]"#,
                ErrorCode::ParseError,
                400,
            ),
            (
                br#"[{"jsonrpc":"2.0","method":"sum","id":"1"},{"jsonrpc":"2.0","method"]"#,
                ErrorCode::ParseError,
                400,
            ),
            (b"{} {}", ErrorCode::ParseError, 400),
            (b"\"\xff\"", ErrorCode::ParseError, 400),
            (deep.as_bytes(), ErrorCode::ParseError, 400),
            (b"[]", ErrorCode::InvalidRequest, 400),
            (b" [ ] ", ErrorCode::InvalidRequest, 400),
            (b"7", ErrorCode::InvalidRequest, 400),
        ] {
            assert_eq!(
                refusal(body),
                (code, status),
                "{}",
                String::from_utf8_lossy(&body[..body.len().min(80)])
            );
        }
    }

    #[test]
    fn a_body_may_have_a_mebibyte_and_a_batch_a_hundred_entries() {
        let request = r#"{"jsonrpc":"2.0","method":"m","id":1}"#;
        let padded = |length: usize| format!("{request}{}", " ".repeat(length - request.len()));
        assert!(matches!(
            Incoming::parse(padded(1_048_576).as_bytes()),
            Incoming::Single(Parsed::Request(_))
        ));
        assert_eq!(
            refusal(padded(1_048_577).as_bytes()),
            (ErrorCode::PayloadTooLarge, 413)
        );

        let batch = |count: usize| format!("[{}]", vec![request; count].join(","));
        let Incoming::Batch(entries) = Incoming::parse(batch(100).as_bytes()) else {
            panic!("a hundred are refused");
        };
        assert_eq!(entries.len(), 100);
        assert_eq!(refusal(batch(101).as_bytes()), (ErrorCode::InvalidRequest, 400));
    }

    #[test]
    fn an_answer_has_a_result_or_an_error_and_the_trace_beside_it() {
        let id = request(r#"{"jsonrpc":"2.0","method":"m","id":"1"}"#).id.unwrap();
        let result = Reply::single(Some(Answer::result(id.clone(), json!(null))));
        assert_eq!(result.status, 200);
        assert_eq!(
            result.body.unwrap(),
            r#"{"jsonrpc":"2.0","id":"1","result":null}"#
        );

        let error =
            Answer::error(id, json!({"code": -32601, "message": "no"})).with_trace(json!({"hops": 2}));
        let error = Reply::single(Some(error));
        assert_eq!(error.status, 200);
        let body: Value = serde_json::from_str(&error.body.unwrap()).unwrap();
        let expected = json!({
            "jsonrpc": "2.0", "id": "1", "error": {"code": -32601, "message": "no"}, "trace": {"hops": 2},
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn notifications_have_no_answer_alone_or_in_a_batch() {
        let nothing = Reply {
            status: 204,
            body: None,
            message_id: None,
        };
        let notification = r#"{"jsonrpc":"2.0","method":"m"}"#;
        assert_eq!(reply(notification.as_bytes()), nothing);
        assert_eq!(
            reply(format!("[{notification},{notification}]").as_bytes()),
            nothing
        );
    }

    #[test]
    fn a_mixed_batch_is_answered_in_order_without_its_notifications() {
        let body = br#"[
            {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
            {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
            {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "1"},
            {"foo": "boo"},
            1
        ]"#;
        let reply = reply(body);
        assert_eq!(reply.status, 200);
        let answers: Vec<Value> = serde_json::from_str(&reply.body.unwrap()).unwrap();
        let summaries: Vec<_> = answers
            .iter()
            .map(|answer| (&answer["id"], answer["result"].as_str(), answer["error"].as_i64()))
            .collect();
        let (id, null) = (json!("1"), json!(null));
        let invalid = (&null, None, Some(-32600));
        assert_eq!(
            summaries,
            [
                (&id, Some("sum"), None),
                (&id, Some("subtract"), None),
                invalid,
                invalid
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            check(&reply(&bytes));
        }

        #[test]
        fn what_is_almost_json_has_an_answer(
            picks in proptest::collection::vec(proptest::sample::select(PIECES), 0..60),
        ) {
            check(&reply(picks.concat().as_bytes()));
            // Nor does looking for what is written where need the reader's judgement.
            let _ = written_id(&picks.concat());
        }

        #[test]
        fn any_json_has_an_answer(value in any_json()) {
            let reply = reply(value.to_string().as_bytes());
            check(&reply);
            if let Some(entries) = value.as_array() {
                let body: Value = reply.body.as_ref().map_or(Value::Null, |body| serde_json::from_str(body).unwrap());
                prop_assert!(body.is_object() || body.as_array().map_or(0, Vec::len) <= entries.len());
            }
        }

        #[test]
        fn an_answer_has_the_id_of_its_request(id in any_id(), params in any_json(), is_batch in any::<bool>()) {
            let body = format!(r#"{{"params":[{params}],"id":{id},"method":"m","jsonrpc":"2.0"}}"#);
            let body = if is_batch { format!("[{body}]") } else { body };
            let reply = reply(body.as_bytes()).body.unwrap();
            let inner = if is_batch { &reply[1..reply.len() - 1] } else { &reply };
            prop_assert_eq!(inner, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"m"}}"#));
        }

        #[test]
        fn an_error_has_it_too(id in any_id()) {
            let body = format!(r#"{{"method":7,"id":{id},"jsonrpc":"2.0"}}"#);
            let reply = reply(body.as_bytes());
            prop_assert_eq!(reply.status, 400);
            prop_assert_eq!(reply.body.unwrap(), format!(r#"{{"jsonrpc":"2.0","id":{id},"error":-32600}}"#));
        }
    }

    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"id\"",
        "\"jsonrpc\"",
        "\"2.0\"",
        "\"method\"",
        "\"params\"",
        "1.50",
        "-",
        "7",
        "null",
        "true",
        " ",
        "é",
    ];

    fn any_id() -> impl Strategy<Value = String> {
        let number = (
            any::<bool>(),
            any::<u128>(),
            any::<Option<u64>>(),
            any::<Option<i8>>(),
        )
            .prop_map(|(is_negative, whole, fraction, exponent)| {
                let sign = if is_negative { "-" } else { "" };
                let fraction = fraction.map_or_else(String::new, |digits| format!(".{digits}"));
                let exponent = exponent.map_or_else(String::new, |exponent| format!("e{exponent}"));
                format!("{sign}{whole}{fraction}{exponent}")
            });
        // What `Math.random()` makes.
        let random = (0.0..1.0).prop_map(|number: f64| number.to_string());
        prop_oneof![
            Just("null".to_owned()),
            any::<String>().prop_map(|text| json!(text).to_string()),
            number,
            random
        ]
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            any::<String>(),
            proptest::sample::select(&["id", "jsonrpc", "method", "params"][..]).prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(json!("2.0")),
        ];
        leaf.prop_recursive(4, 48, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((name.clone(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Every answer has its version, an id, and either a result or an error.
    fn check(reply: &Reply) {
        assert_eq!(reply.body.is_none(), reply.status == 204);
        let Some(body) = &reply.body else {
            return;
        };
        let answers = match serde_json::from_str(body).unwrap() {
            Value::Array(answers) => answers,
            answer => vec![answer],
        };
        assert!(!answers.is_empty());
        for answer in answers {
            assert_eq!(answer["jsonrpc"], "2.0");
            assert!(answer.get("id").is_some());
            assert_ne!(answer.get("result").is_some(), answer.get("error").is_some());
        }
    }

    /// Of a node whose methods all answer with their name.
    fn reply(body: &[u8]) -> Reply {
        let answer = |parsed| match parsed {
            Parsed::Request(Request { id, method, .. }) => id.map(|id| Answer::result(id, json!(method))),
            Parsed::Invalid(invalid) => Some(invalid.answer(|error| json!(error.code.number()))),
        };
        match Incoming::parse(body) {
            Incoming::Single(parsed) => Reply::single(answer(parsed)),
            Incoming::Batch(entries) => Reply::batch(entries.into_iter().map(answer)),
        }
    }

    fn request(body: &str) -> Request {
        match Incoming::parse(body.as_bytes()) {
            Incoming::Single(Parsed::Request(request)) => request,
            other => panic!("no request: {other:?}"),
        }
    }

    fn refusal(body: &[u8]) -> (ErrorCode, u16) {
        let Incoming::Single(Parsed::Invalid(invalid)) = Incoming::parse(body) else {
            panic!("taken");
        };
        assert_eq!(invalid.id, Id::NULL);
        let code = invalid.error.code;
        let reply = Reply::single(Some(invalid.answer(|error| json!(error.code.number()))));
        assert!(reply.body.unwrap().contains(r#""id":null,"error":"#));
        (code, reply.status)
    }
}
