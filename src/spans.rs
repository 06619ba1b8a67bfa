//! Gives the spans of calls to a collector of OpenTelemetry, by OTLP over HTTP.
//!
//! Its settings are the environment variables that OpenTelemetry names for all programs. Makes no spans; what is exported of
//! one is in `spans/otlp.rs`.

mod otlp;

use std::time::Duration;

use lapwing_base::{PeerId, chain};
use lapwing_federation::{Sampler, Span};
use opentelemetry_proto::tonic::resource::v1::Resource;
use percent_encoding::percent_decode_str;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Where all signals of OpenTelemetry go; those of traces to `v1/traces` below it.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where traces go, as it is.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// Sent with each request: `name=value,name=value`, where a value may be percent-encoded. Keys to the collector, mostly.
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];

/// How it is spoken to.
const PROTOCOL: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];

/// Which traces are exported, and for those that go by a share, which.
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// What this node is called there.
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const SERVICE_NAME_DEFAULT: &str = "lapwing";

/// Of one request: OpenTelemetry's own default, some 200 KiB.
const BATCH_MAX: usize = 512;

/// Spans that wait: four batches, for collectors that take a moment. About 2 MiB.
const QUEUE: usize = 4 * BATCH_MAX;

/// A collector that is slower is as good as gone; OpenTelemetry's own default.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// So often a batch is tried, which takes about as long as a collector needs to start again: 1 + 2 + 4 + 8 s.
const ATTEMPTS_MAX: u32 = 5;

/// At the end it takes no longer than this to give away what is left.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// Exports spans until it is stopped. There is none where the environment names no collector.
#[derive(Debug)]
#[must_use = "nothing is exported before it runs"]
pub(crate) struct SpanExporter {
    collector: Collector,
    pace: Pace,
    sampler: Sampler,
    queue: mpsc::Receiver<Span>,
    to_queue: mpsc::Sender<Span>,
}

/// Settings by which nothing can be exported. The texts hold none of their values but the protocol's, since there are
/// passwords in URLs and keys in headers.
#[derive(Debug, thiserror::Error)]
pub enum SpanExporterError {
    /// A URL of something else.
    #[error("{variable} is no URL of HTTP; write for example `http://127.0.0.1:4318`")]
    Endpoint {
        /// Which setting.
        variable: &'static str,
    },
    /// A protocol that is not spoken here.
    #[error("{variable} is `{protocol}`; spans are exported by `http/protobuf` alone, mostly at port 4318")]
    Protocol {
        /// Which setting.
        variable: &'static str,
        /// What it is.
        protocol: String,
    },
    /// Headers that cannot be read.
    #[error("{variable} is no list of headers; write for example `api-key=secret,tenant=blue`")]
    Headers {
        /// Which setting.
        variable: &'static str,
    },
    /// A way to choose traces that there is not here.
    #[error(
        "{SAMPLER} is `{sampler}`; there are `always_on`, `always_off`, `traceidratio`, and `parentbased_` in front of each, of \
         which `parentbased_always_on` is the default"
    )]
    Sampler {
        /// As given.
        sampler: String,
    },
    /// No share of them.
    #[error("{SAMPLER_ARGUMENT} is `{argument}`; it is the share of traces that are exported, from 0 to 1")]
    SamplerArgument {
        /// As given.
        argument: String,
    },
    /// There is no client for it.
    #[error("HTTP cannot be spoken here")]
    Client(#[from] reqwest::Error),
}

/// When what is done.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// So long the first span of a batch waits for others.
    gather: Duration,
    /// Before a batch is tried again for the first time; then twice as long each time.
    backoff: Duration,
    /// The longest that a collector may ask to wait.
    backoff_max: Duration,
}

impl Pace {
    const DEFAULT: Self = Self {
        gather: Duration::from_secs(1),
        backoff: Duration::from_secs(1),
        backoff_max: Duration::from_secs(30),
    };
}

impl SpanExporter {
    /// Exports to where the environment says, as `node`; `None` where it says nothing.
    ///
    /// # Errors
    /// When it says what cannot be.
    pub(crate) fn from_env(node: PeerId) -> Result<Option<Self>, SpanExporterError> {
        Self::from_variables(node, |name| std::env::var(name).ok())
    }

    fn from_variables(
        node: PeerId,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, SpanExporterError> {
        // An empty variable is one that is not set.
        let get = |name: &'static str| variable(name).filter(|text| !text.trim().is_empty());
        let Some(url) = endpoint(get)? else {
            return Ok(None);
        };
        check_protocol(get)?;
        let name = get(SERVICE_NAME).unwrap_or_else(|| SERVICE_NAME_DEFAULT.to_owned());
        let (to_queue, queue) = mpsc::channel(QUEUE);
        Ok(Some(Self {
            collector: Collector {
                http: client(&url, headers(get)?)?,
                url,
                resource: otlp::resource(name, node),
                state: State::Reached,
            },
            pace: Pace::DEFAULT,
            sampler: sampler(get)?,
            queue,
            to_queue,
        }))
    }

    /// Where spans are given to it. What finds no place there is lost to it.
    pub(crate) fn sender(&self) -> mpsc::Sender<Span> {
        self.to_queue.clone()
    }

    /// Which traces it wants spans of.
    pub(crate) const fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Exports what it is given, until nobody can give it more, or `stop` and a last try. Stop it after those who give.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self {
            mut collector,
            pace,
            mut queue,
            to_queue,
            ..
        } = self;
        drop(to_queue);
        let exporting = async {
            while let Some(batch) = gather(&mut queue, pace.gather, &stop).await {
                collector.export(&batch, pace, &stop).await;
            }
        };
        let is_late = async {
            stop.cancelled().await;
            tokio::time::sleep(GOODBYE_MAX).await;
        };
        tokio::select! {
            () = exporting => (),
            () = is_late => debug!("the last spans were not exported in time"),
        }
    }
}

/// The next spans, once there are any; `None` when there are no more.
async fn gather(
    queue: &mut mpsc::Receiver<Span>,
    patience: Duration,
    stop: &CancellationToken,
) -> Option<Vec<Span>> {
    let mut batch = Vec::new();
    if stop
        .run_until_cancelled(queue.recv_many(&mut batch, BATCH_MAX))
        .await
        .is_none()
    {
        // What is there already is all that is taken.
        queue.close();
        queue.recv_many(&mut batch, BATCH_MAX).await;
    }
    let others = async {
        while batch.len() < BATCH_MAX {
            let more = BATCH_MAX - batch.len();
            if queue.recv_many(&mut batch, more).await == 0 {
                return;
            }
        }
    };
    let _in_time = stop
        .run_until_cancelled(tokio::time::timeout(patience, others))
        .await;
    (!batch.is_empty()).then_some(batch)
}

/// Whom spans are given to.
#[derive(Debug)]
struct Collector {
    url: Url,
    http: reqwest::Client,
    resource: Resource,
    state: State,
}

#[derive(Debug)]
enum State {
    Reached,
    /// Somebody was warned.
    Failing {
        /// Spans that it did not take since.
        lost: usize,
    },
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Nothing came back.
    #[error("it does not answer: {0}")]
    Silent(String),
    /// It wants it later, or not at all.
    #[error("it answers with status {status}")]
    Refused {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
}

impl Failure {
    /// Whether the same may be taken another time (OTLP, "Retryable Response Codes": what others
    /// refuse must not be sent again).
    fn is_passing(&self) -> bool {
        match self {
            Self::Silent(_) => true,
            Self::Refused { status, .. } => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }

    const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Silent(_) => None,
            Self::Refused { retry_after, .. } => *retry_after,
        }
    }
}

impl Collector {
    /// Gives it a batch, and tries again where that may help. Meanwhile others wait in the queue, and find it full.
    async fn export(&mut self, batch: &[Span], pace: Pace, stop: &CancellationToken) {
        let body = otlp::request(&self.resource, batch);
        let mut backoff = pace.backoff;
        for attempt in 1..=ATTEMPTS_MAX {
            let Err(failure) = self.post(body.clone()).await else {
                self.on_taken();
                return;
            };
            let is_last = attempt == ATTEMPTS_MAX || !failure.is_passing() || stop.is_cancelled();
            self.on_failure(&failure, if is_last { batch.len() } else { 0 });
            if is_last {
                return;
            }
            let wait = failure.retry_after().unwrap_or(backoff).min(pace.backoff_max);
            let _waited = stop.run_until_cancelled(tokio::time::sleep(wait)).await;
            backoff *= 2;
        }
    }

    async fn post(&self, body: Vec<u8>) -> Result<(), Failure> {
        let request = self.http.post(self.url.clone()).body(body);
        // There may be a password in the URL.
        let silent = |error: reqwest::Error| Failure::Silent(chain(&error.without_url()));
        let response = request.send().await.map_err(silent)?;
        if response.status().is_success() {
            return Ok(());
        }
        let retry_after = response.headers().get(RETRY_AFTER);
        let seconds = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        Err(Failure::Refused {
            status: response.status(),
            retry_after: seconds.map(Duration::from_secs),
        })
    }

    fn on_taken(&mut self) {
        if let State::Failing { lost } = std::mem::replace(&mut self.state, State::Reached) {
            info!(lost, "spans are exported again");
        }
    }

    fn on_failure(&mut self, failure: &Failure, more_lost: usize) {
        let host = self.url.host_str();
        match &mut self.state {
            State::Reached => {
                warn!(host, %failure, "spans cannot be exported; nothing more is said of it until they can");
                self.state = State::Failing { lost: more_lost };
            }
            State::Failing { lost } => {
                *lost += more_lost;
                debug!(host, %failure, lost, "spans were not exported");
            }
        }
    }
}

fn endpoint(get: impl Fn(&'static str) -> Option<String>) -> Result<Option<Url>, SpanExporterError> {
    let (variable, text) = match (get(TRACES_ENDPOINT), get(ENDPOINT)) {
        (Some(text), _) => (TRACES_ENDPOINT, text),
        (None, Some(text)) => (ENDPOINT, text),
        (None, None) => return Ok(None),
    };
    let is_http = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    let url = text.trim().parse().ok().filter(is_http);
    let mut url: Url = url.ok_or(SpanExporterError::Endpoint { variable })?;
    if variable == ENDPOINT {
        let below = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&below);
    }
    Ok(Some(url))
}

fn check_protocol(get: impl Fn(&'static str) -> Option<String>) -> Result<(), SpanExporterError> {
    let given = PROTOCOL.into_iter().find_map(|name| Some((name, get(name)?)));
    match given {
        Some((variable, protocol)) if protocol.trim() != "http/protobuf" => {
            Err(SpanExporterError::Protocol { variable, protocol })
        }
        _ => Ok(()),
    }
}

fn sampler(get: impl Fn(&'static str) -> Option<String>) -> Result<Sampler, SpanExporterError> {
    let Some(text) = get(SAMPLER) else {
        return Ok(Sampler::default());
    };
    let unknown = || SpanExporterError::Sampler {
        sampler: text.clone(),
    };
    let name = text.trim();
    let (name, is_by_parent) = match name.strip_prefix("parentbased_") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let sampler = match name {
        "always_on" => Sampler::share(1.0),
        "always_off" => Sampler::share(0.0),
        "traceidratio" => Sampler::share(share(get)?),
        _ => return Err(unknown()),
    };
    Ok(if is_by_parent {
        sampler.by_parent()
    } else {
        sampler
    })
}

fn share(get: impl Fn(&'static str) -> Option<String>) -> Result<f64, SpanExporterError> {
    let Some(argument) = get(SAMPLER_ARGUMENT) else {
        return Ok(1.0);
    };
    let share = argument.trim().parse().ok();
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or(SpanExporterError::SamplerArgument { argument })
}

fn headers(get: impl Fn(&'static str) -> Option<String>) -> Result<HeaderMap, SpanExporterError> {
    let given = HEADERS.into_iter().find_map(|name| Some((name, get(name)?)));
    let mut headers = HeaderMap::new();
    if let Some((variable, text)) = given {
        for member in text.split(',').filter(|member| !member.trim().is_empty()) {
            let (name, value) = header(member).ok_or(SpanExporterError::Headers { variable })?;
            headers.append(name, value);
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    Ok(headers)
}

fn header(member: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = member.split_once('=')?;
    let value: Vec<u8> = percent_decode_str(value.trim()).collect();
    let mut value = HeaderValue::from_bytes(&value).ok()?;
    // Nobody writes it down.
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

fn client(url: &Url, headers: HeaderMap) -> Result<reqwest::Client, reqwest::Error> {
    // An error means that the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut http = reqwest::Client::builder()
        .timeout(REQUEST_TIMEOUT)
        // The keys are for whoever was named.
        .redirect(reqwest::redirect::Policy::none())
        .default_headers(headers)
        .user_agent(concat!("lapwing/", env!("CARGO_PKG_VERSION")));
    if url.scheme() == "http" {
        // Without HTTPS a machine needs no store of trusted certificates.
        http = http.tls_certs_only([]);
    }
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    if host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()) {
        http = http.no_proxy();
    }
    http.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{Ready, ready};
    use std::sync::{Arc, Mutex};
    use std::time::SystemTime;

    use axum::body::Bytes;
    use axum::extract::State as Shared;
    use axum::routing::post;
    use lapwing_federation::{SpanKind, TraceParent};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1 as proto;
    use prost::Message as _;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    const SECRET: &str = "c2VjcmV0";

    #[test]
    fn without_a_collector_there_is_none() {
        assert!(exporter(&[]).unwrap().is_none());
        assert!(
            exporter(&[(ENDPOINT, " "), (TRACES_ENDPOINT, "")])
                .unwrap()
                .is_none()
        );
        // Then the others are for somebody else.
        assert!(exporter(&[(PROTOCOL[1], "grpc")]).unwrap().is_none());
    }

    #[test]
    fn traces_go_below_the_endpoint_of_all_signals_or_to_their_own() {
        let url = |variables: &[(&str, &str)]| exporter(variables).unwrap().unwrap().collector.url;
        for base in ["http://localhost:4318", "http://localhost:4318/"] {
            assert_eq!(
                url(&[(ENDPOINT, base)]).as_str(),
                "http://localhost:4318/v1/traces"
            );
        }
        let base = (ENDPOINT, "https://collector.example/otlp");
        assert_eq!(url(&[base]).as_str(), "https://collector.example/otlp/v1/traces");
        let own = (TRACES_ENDPOINT, "https://traces.example/in");
        assert_eq!(url(&[base, own]).as_str(), "https://traces.example/in");
    }

    #[test]
    fn which_traces_are_exported_is_said_by_the_names_that_opentelemetry_has() {
        let sampler = |more: &[(&str, &str)]| {
            let variables = [&[(ENDPOINT, "http://127.0.0.1:4318")], more].concat();
            exporter(&variables).map(|exporter| exporter.unwrap().sampler())
        };
        let half = (SAMPLER_ARGUMENT, "0.5");
        for (more, expected) in [
            (vec![], Sampler::default()),
            (vec![half], Sampler::default()),
            (vec![(SAMPLER, "parentbased_always_on")], Sampler::default()),
            (vec![(SAMPLER, "always_on")], Sampler::share(1.0)),
            (vec![(SAMPLER, "always_off")], Sampler::share(0.0)),
            (vec![(SAMPLER, "traceidratio")], Sampler::share(1.0)),
            (vec![(SAMPLER, "traceidratio"), half], Sampler::share(0.5)),
            (
                vec![(SAMPLER, "parentbased_traceidratio"), half],
                Sampler::share(0.5).by_parent(),
            ),
            (
                vec![(SAMPLER, " parentbased_always_off ")],
                Sampler::share(0.0).by_parent(),
            ),
        ] {
            assert_eq!(sampler(&more).unwrap(), expected, "{more:?}");
        }
        for wrong in ["jaeger_remote", "parentbased_", "ALWAYS_ON"] {
            let error = sampler(&[(SAMPLER, wrong)]).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("traceidratio"), "{error}");
        }
        for wrong in ["half", "-0.1", "1.1", "NaN"] {
            let error = sampler(&[(SAMPLER, "traceidratio"), (SAMPLER_ARGUMENT, wrong)]);
            assert!(error.unwrap_err().to_string().contains(wrong));
        }
    }

    #[test]
    fn a_setting_that_cannot_be_is_named_and_no_secret_is_told() {
        let endpoint = (ENDPOINT, "http://user:c2VjcmV0@127.0.0.1:4318");
        for (variables, name) in [
            (vec![(ENDPOINT, "c2VjcmV0")], ENDPOINT),
            (
                vec![(TRACES_ENDPOINT, "ftp://user:c2VjcmV0@host")],
                TRACES_ENDPOINT,
            ),
            (vec![endpoint, (PROTOCOL[1], "grpc")], PROTOCOL[1]),
            (vec![endpoint, (HEADERS[0], "c2VjcmV0")], HEADERS[0]),
            (vec![endpoint, (HEADERS[1], "a=1,no name=c2VjcmV0")], HEADERS[1]),
            (vec![endpoint, (HEADERS[1], "key=c2VjcmV0%0a")], HEADERS[1]),
        ] {
            let error = exporter(&variables).unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(told.contains(name) && !told.contains(SECRET), "{told}");
        }
        let keys = [
            (ENDPOINT, "http://127.0.0.1:4318"),
            (HEADERS[1], "authorization=Basic%20c2VjcmV0, ,"),
        ];
        let exporter = exporter(&keys).unwrap().unwrap();
        assert!(!format!("{exporter:?}").contains(SECRET));
    }

    #[tokio::test]
    async fn a_collector_gets_every_span_that_it_does_not_refuse() {
        // The first batch is not what it takes; the second it takes at the second try.
        let mut collector = TestCollector::start(&[500, 503, 200]).await;
        let exporter = collector.exporter();
        let to = exporter.sender();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(exporter.run(stop.clone()));
        to.send(span(1)).await.unwrap();
        assert_eq!(names(&collector.next().await), ["call 1"]);
        to.send(span(2)).await.unwrap();
        assert_eq!(names(&collector.next().await), ["call 2"]);
        let request = collector.next().await;
        assert_eq!(names(&request), ["call 2"]);
        let resource = &request.resource_spans[0].resource.as_ref().unwrap().attributes;
        assert_eq!(otlp::tests::text(resource, "service.name"), Some("blue"));
        stop.cancel();
        tasks.join_all().await;
    }

    #[tokio::test]
    async fn a_collector_that_never_takes_them_costs_spans_and_nothing_else() {
        let mut collector = TestCollector::start(&[503]).await;
        let exporter = collector.exporter();
        let to = exporter.sender();
        let mut tasks = JoinSet::new();
        tasks.spawn(exporter.run(CancellationToken::new()));
        to.send(span(1)).await.unwrap();
        for _ in 0..ATTEMPTS_MAX {
            assert_eq!(names(&collector.next().await), ["call 1"]);
        }
        to.send(span(2)).await.unwrap();
        assert_eq!(names(&collector.next().await), ["call 2"]);
        // When nobody can give it more, it ends by itself.
        drop(to);
        tasks.join_all().await;
    }

    #[tokio::test]
    async fn what_has_come_before_the_end_is_exported_in_batches() {
        let mut collector = TestCollector::start(&[200]).await;
        let exporter = collector.exporter();
        let to = exporter.sender();
        for number in 0..700 {
            to.try_send(span(number)).unwrap();
        }
        let stop = CancellationToken::new();
        stop.cancel();
        exporter.run(stop).await;
        assert_eq!(names(&collector.next().await).len(), BATCH_MAX);
        assert_eq!(names(&collector.next().await).len(), 700 - BATCH_MAX);
        assert!(to.is_closed());
    }

    fn exporter(variables: &[(&str, &str)]) -> Result<Option<SpanExporter>, SpanExporterError> {
        SpanExporter::from_variables(PeerId::random(), |name| {
            let given = variables.iter().find(|(given, _)| *given == name);
            given.map(|(_, value)| (*value).to_owned())
        })
    }

    fn span(number: u64) -> Span {
        let own = TraceParent::root(7, number);
        let name = format!("call {number}");
        Span::begin(SpanKind::Server, own, None, name, SystemTime::UNIX_EPOCH)
    }

    fn names(request: &ExportTraceServiceRequest) -> Vec<&str> {
        let spans: &[proto::Span] = &request.resource_spans[0].scope_spans[0].spans;
        spans.iter().map(|span| span.name.as_str()).collect()
    }

    /// Answers with these statuses, the last of them for ever.
    struct TestCollector {
        url: String,
        requests: mpsc::Receiver<(HeaderMap, Bytes)>,
        _serving: JoinSet<()>,
    }

    type Answering = Arc<(Mutex<Vec<u16>>, mpsc::Sender<(HeaderMap, Bytes)>)>;

    impl TestCollector {
        async fn start(statuses: &[u16]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (to, requests) = mpsc::channel(100);
            let statuses = statuses.iter().rev().copied().collect();
            let app = axum::Router::new()
                .route("/v1/traces", post(Self::answer))
                .with_state(Arc::new((Mutex::new(statuses), to)));
            let mut serving = JoinSet::new();
            serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
            Self {
                url,
                requests,
                _serving: serving,
            }
        }

        fn answer(Shared(shared): Shared<Answering>, headers: HeaderMap, body: Bytes) -> Ready<StatusCode> {
            let (statuses, to) = &*shared;
            to.try_send((headers, body)).unwrap();
            let mut statuses = statuses.lock().unwrap();
            let status = if statuses.len() > 1 {
                statuses.pop()
            } else {
                statuses.last().copied()
            };
            ready(StatusCode::from_u16(status.unwrap()).unwrap())
        }

        /// One that hurries.
        fn exporter(&self) -> SpanExporter {
            let keys = (HEADERS[1], "authorization=Basic%20c2VjcmV0");
            let variables = [(ENDPOINT, self.url.as_str()), keys, (SERVICE_NAME, "blue")];
            let pace = Pace {
                gather: Duration::from_millis(1),
                backoff: Duration::from_millis(1),
                ..Pace::DEFAULT
            };
            SpanExporter {
                pace,
                ..exporter(&variables).unwrap().unwrap()
            }
        }

        async fn next(&mut self) -> ExportTraceServiceRequest {
            let request = tokio::time::timeout(Duration::from_secs(30), self.requests.recv());
            let (headers, body) = request.await.unwrap().unwrap();
            assert_eq!(headers[CONTENT_TYPE], "application/x-protobuf");
            assert_eq!(headers["authorization"], "Basic c2VjcmV0");
            ExportTraceServiceRequest::decode(body).unwrap()
        }
    }
}
