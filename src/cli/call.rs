//! `lapwing call`: calls a service of any node, through a node of this machine or a relay.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin_client::{AdminClient, Target};
use super::documents;
use super::failure::Failure;
use super::output::{Align, Output, Table};
use crate::federation_settings::read_token_text;
use lapwing_base::chain;

/// What is called, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct CallFlags {
    /// Which node is to answer, as name.home@main, a name or a peer id; `-` for any that offers the service
    #[arg(value_name = "TARGET", allow_hyphen_values = true)]
    target: String,

    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,

    /// What is called in it
    #[arg(value_name = "METHOD")]
    method: String,

    /// What it is given: an array by position, an object by name, anything else as the only argument
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    arguments: Option<String>,

    /// Seconds to wait for the answer, 0.05 to 3600
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    timeout: f64,

    /// Tell by which way the answer has come, and what took how long
    #[arg(long)]
    trace: bool,

    /// Which versions will do, such as '>=1.2,<2' [default: any]
    #[arg(long, value_name = "CONSTRAINT")]
    version: Option<String>,

    /// What the service has to work on; repeatable
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    resource: Vec<String>,

    /// Which calls a congested main passes on first: -10 to 10, the highest first
    #[arg(long, value_name = "N", default_value_t = 0, allow_hyphen_values = true)]
    priority: i8,

    /// Say that it may be carried out twice, so that it is tried again where nobody knows whether it was
    #[arg(long)]
    idempotent: bool,

    /// File with the token that the service wants
    #[arg(long, value_name = "FILE")]
    call_token_file: Option<PathBuf>,

    #[command(flatten)]
    node: Target,
}

/// The node itself answers with an error a moment before nobody waits any more.
const MARGIN: Duration = Duration::from_secs(5);

/// What JSON-RPC answers.
#[derive(Debug, Deserialize)]
struct Reply {
    #[serde(default)]
    result: Value,
    error: Option<ReplyError>,
    trace: Option<Trace>,
}

#[derive(Debug, Deserialize)]
struct ReplyError {
    code: i64,
    message: String,
    #[serde(default)]
    data: ErrorData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorData {
    name: Option<String>,
    retryable: bool,
    retry_after_ms: Option<u64>,
    failed_at: Option<String>,
    remote: Option<Remote>,
}

/// What the service itself has answered.
#[derive(Debug, Deserialize)]
struct Remote {
    code: i64,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Trace {
    trace_id: String,
    hops: u64,
    path: Vec<Hop>,
}

#[derive(Debug, Deserialize)]
struct Hop {
    node: String,
    queue_us: u64,
    forward_us: u64,
    exec_us: u64,
}

/// Makes the call and prints its result. For programs: the JSON-RPC answer.
pub(crate) async fn run(flags: CallFlags, output: Output) -> Result<(), Failure> {
    let doing = format!("call {}.{}", flags.service, flags.method);
    let request = flags.request()?;
    let token = flags
        .call_token_file
        .clone()
        .map(read_token_text)
        .transpose()
        .map_err(|error| Failure::usage(chain(&error)))?;
    let patience = Duration::try_from_secs_f64(flags.timeout).unwrap_or_default() + MARGIN;
    let client = flags.node.patient_client(patience)?;
    let answered = client.call(request.to_string(), token.as_deref()).await;
    let document = answered.map_err(|error| error.failing_to(&doing))?;
    if output.is_json() {
        output.document(&document)?;
    }
    let reply: Reply = documents::read(document).map_err(|error| Failure::new("read the answer", error))?;
    if let Some(error) = reply.error {
        let names = Names::get(&client).await;
        // How far it came and what took so long is asked most where it fails.
        if let Some(trace) = reply.trace.filter(|_| !output.is_json()) {
            output.line(trace.text(&names))?;
        }
        return Err(error.failure(&doing, &names));
    }
    if output.is_json() {
        return Ok(());
    }
    let text = serde_json::to_string_pretty(&reply.result).map_err(|error| Failure::new(&doing, error))?;
    output.line(text)?;
    match reply.trace {
        Some(trace) => output.line(trace.text(&Names::get(&client).await)),
        None => Ok(()),
    }
}

/// What nodes are called, by their ids, as far as whoever was asked knows.
#[derive(Debug, Default)]
struct Names(BTreeMap<String, String>);

#[derive(Debug, Deserialize)]
struct Known {
    node_id: String,
    node_address: String,
    services: Vec<KnownService>,
}

#[derive(Debug, Deserialize)]
struct KnownService {
    node_id: String,
    node_address: String,
}

impl Names {
    /// None where nobody says: an id is a name too.
    async fn get(client: &AdminClient) -> Self {
        let known = client.get_document("/federation/services").await;
        known.map(Self::of).unwrap_or_default()
    }

    fn of(known: Known) -> Self {
        let services = known.services.into_iter();
        let named = services.map(|service| (service.node_id, service.node_address));
        let named = named.chain([(known.node_id, known.node_address)]);
        Self(named.collect())
    }

    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.0.get(id).map_or(id, String::as_str)
    }
}

impl CallFlags {
    fn request(&self) -> Result<Value, Failure> {
        if !(0.05..=3600.0).contains(&self.timeout) {
            return Err(Failure::usage("--timeout is between 0.05 and 3600 seconds"));
        }
        let arguments: Option<Value> = self
            .arguments
            .as_deref()
            .map(serde_json::from_str)
            .transpose()
            .map_err(|error| {
                Failure::usage(format!("the arguments are no JSON: {error}"))
                    .with_hint(r#"a text has quotes of its own, as in '"hello"' or '["hello", 1]'"#)
            })?;
        let mut params = json!({
            "service_name": self.service,
            "method": self.method,
            "timeout": self.timeout,
            "trace": self.trace,
            "priority": self.priority,
            "idempotent": self.idempotent,
        });
        if self.target != "-" {
            params["node_id"] = json!(self.target);
        }
        if let Some(arguments) = arguments {
            params["args"] = arguments;
        }
        if let Some(version) = &self.version {
            params["version"] = json!(version);
        }
        if !self.resource.is_empty() {
            params["locs"] = json!(self.resource);
        }
        Ok(json!({ "jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": params }))
    }
}

impl ReplyError {
    fn failure(self, doing: &str, names: &Names) -> Failure {
        let ErrorData {
            name,
            retryable,
            retry_after_ms,
            failed_at,
            remote,
        } = self.data;
        let name = name.unwrap_or_else(|| "error".to_owned());
        let at = failed_at
            .map(|node| format!(", at {}", names.name(&node)))
            .unwrap_or_default();
        let said = remote
            .map(|Remote { code, message }| format!(": {message}, {code}"))
            .unwrap_or_default();
        let failure = Failure::new(
            doing,
            format!("{}{said} ({name}, {}{at})", self.message, self.code),
        );
        match (retryable, retry_after_ms) {
            (_, Some(wait)) => failure.with_hint(format!("try again in {:.1} s", wait as f64 / 1000.0)),
            (true, None) => failure.with_hint("it may be tried again"),
            (false, None) => match name.as_str() {
                "service_not_found" | "node_not_found" => failure.with_hint("see `lapwing services`"),
                "error" | "remote_error" => failure,
                name => failure.with_hint(format!("see `lapwing explain {name}`")),
            },
        }
    }
}

impl Trace {
    fn text(&self, names: &Names) -> String {
        let mut table = Table::new([
            ("node", Align::Left),
            ("queued", Align::Right),
            ("forwarded", Align::Right),
            ("executed", Align::Right),
        ]);
        let micros = |value: u64| format!("{value} us");
        for hop in &self.path {
            table.row([
                names.name(&hop.node).to_owned(),
                micros(hop.queue_us),
                micros(hop.forward_us),
                micros(hop.exec_us),
            ]);
        }
        format!("trace {}, {} hops\n{table}", self.trace_id, self.hops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        call: CallFlags,
    }

    fn request(words: &[&str]) -> Result<Value, String> {
        let words = ["call"].iter().chain(words);
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let request = line.call.request();
        request.map_err(|failure| failure.text().unwrap_or_default())
    }

    #[test]
    fn a_call_names_its_node_or_any() {
        let named = request(&["bob.home@relay-a", "blog", "list", "[1]"]).unwrap();
        assert_eq!(named["params"]["node_id"], "bob.home@relay-a");
        assert_eq!(named["params"]["args"], json!([1]));
        let any = request(&["-", "blog", "list", "--priority", "-3"]).unwrap();
        assert_eq!(any["params"].get("node_id"), None);
        assert_eq!(any["params"].get("args"), None);
        assert_eq!(any["params"]["priority"], -3);
    }

    #[test]
    fn what_is_no_json_is_told_how_to_be_written() {
        let error = request(&["-", "blog", "list", "hello"]).unwrap_err();
        assert!(error.contains("quotes of its own"), "{error}");
        assert!(
            request(&["-", "blog", "list", "--timeout", "0"])
                .unwrap_err()
                .contains("3600")
        );
    }

    #[test]
    fn an_error_says_where_it_was_and_what_to_do() {
        let error: ReplyError = serde_json::from_value(json!({
            "code": -32001,
            "message": "service `blog` was not announced",
            "data": { "name": "service_not_found", "retryable": false, "failed_at": "12D3" },
        }))
        .unwrap();
        let names = Names(BTreeMap::from([("12D3".to_owned(), "relay-a".to_owned())]));
        assert_eq!(
            error.failure("call blog.list", &names).text().unwrap(),
            "lapwing: failed to call blog.list: service `blog` was not announced (service_not_found, -32001, at relay-a)\n  \
             see `lapwing services`"
        );
    }

    #[test]
    fn what_a_service_has_said_itself_is_told_with_its_number() {
        let error: ReplyError = serde_json::from_value(json!({
            "code": -32019,
            "message": "the service has answered with an error",
            "data": { "name": "remote_error", "remote": { "code": 404, "message": "there is no post 9" } },
        }))
        .unwrap();
        assert_eq!(
            error.failure("call blog.get", &Names::default()).text().unwrap(),
            "lapwing: failed to call blog.get: the service has answered with an error: there is no post 9, 404 (remote_error, -32019)"
        );
    }

    #[test]
    fn resources_go_by_the_name_that_a_call_knows_them_by() {
        let call = request(&["-", "blog", "list", "--resource", "de,en"]).unwrap();
        assert_eq!(call["params"]["locs"], json!(["de", "en"]));
    }
}
