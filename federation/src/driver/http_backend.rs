//! A service that answers JSON-RPC 2.0 over HTTP somewhere near: what comes over links is posted there.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;

use super::asked::{ANSWER_MAX, Reply, answered, remaining_ms, request};
use super::backend::{Backend, Invocation};
use crate::{CallError, ErrorCode};

/// Posts calls to a URL.
#[derive(Clone, Debug)]
pub struct HttpBackend {
    url: Url,
    http: reqwest::Client,
}

/// A URL at which no service can be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpBackendError {
    /// It is none.
    #[error("`{text}` is no URL of HTTP; write for example `http://127.0.0.1:9000/rpc`")]
    Url {
        /// As given.
        text: String,
    },
    /// There is no client for it.
    #[error("HTTP cannot be spoken here")]
    Client(#[from] reqwest::Error),
}

/// The node at which the call was made.
const CALLER: &str = "lapwing-caller";

/// How many milliseconds the answer is waited for: as long as the connection stays.
const REMAINING: &str = "lapwing-remaining-ms";

/// In which a service takes a connection: it is near, or it is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl HttpBackend {
    /// A service at a URL. Nothing is asked yet.
    ///
    /// # Errors
    /// When it is no URL of HTTP.
    pub fn new(url: &str) -> Result<Self, HttpBackendError> {
        let is_http = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let parsed = url.parse().ok().filter(is_http);
        let parsed: Url = parsed.ok_or_else(|| HttpBackendError::Url { text: url.to_owned() })?;
        // An error means that the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // Whoever is called is who was named.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("lapwing/", env!("CARGO_PKG_VERSION")));
        if parsed.scheme() == "http" {
            // Without HTTPS a machine needs no store of trusted certificates.
            http = http.tls_certs_only([]);
        }
        Ok(Self {
            url: parsed,
            http: http.build()?,
        })
    }

    async fn post(&self, invocation: Invocation) -> Result<String, CallError> {
        // A post has one answer, which therefore need not be told from others.
        let id = format!("\"{:032x}\"", invocation.context.id.0);
        let body = request(&id, &invocation)?;
        let mut request = self
            .http
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json");
        let context = invocation.context;
        request = request
            .header(CALLER, context.caller.to_string())
            .header(REMAINING, remaining_ms(&context));
        let trace = context.trace;
        for (name, text) in [("traceparent", trace.parent), ("tracestate", trace.state)] {
            if let Some(text) = text {
                request = request.header(name, text);
            }
        }
        let mut response = request.body(body).send().await.map_err(|error| silent(&error))?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| silent(&error))? {
            if answer.len() + chunk.len() > ANSWER_MAX {
                let said = format!("the service has answered with more than {ANSWER_MAX} bytes");
                return Err(CallError::new(ErrorCode::PayloadTooLarge, said));
            }
            answer.extend_from_slice(&chunk);
        }
        told(status.as_u16(), &answer)
    }
}

impl Backend for HttpBackend {
    fn call(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        async move { self.post(invocation).await }.boxed()
    }
}

/// What an answer means.
fn told(status: u16, body: &[u8]) -> Result<String, CallError> {
    match Reply::read(body) {
        Some(reply) => reply.into_outcome(status >= 500),
        None => {
            let said = format!("status {status}, and no answer of JSON-RPC");
            Err(answered(status.into(), said, !(400..500).contains(&status)))
        }
    }
}

/// Nothing has come, or not all of it. Callers need not know where the service is.
fn silent(error: &reqwest::Error) -> CallError {
    if error.is_connect() {
        // Nothing was sent, so that the call may be made elsewhere.
        return CallError::new(ErrorCode::PeerUnreachable, "the service takes no connection");
    }
    answered(0, "the service has not answered".to_owned(), true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CallContext, CallId, TraceContext};
    use lapwing_base::PeerId;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn invocation(arguments: Option<&str>) -> Invocation {
        let deadline = crate::driver::now() + Duration::from_secs(5);
        Invocation {
            method: "read".to_owned(),
            arguments: arguments.map(str::to_owned),
            context: CallContext {
                id: CallId(5),
                trace: TraceContext {
                    parent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
                    state: Some("a=1".to_owned()),
                },
                ..CallContext::new(PeerId::random(), deadline)
            },
        }
    }

    #[test]
    fn what_is_no_url_of_http_is_refused() {
        for url in ["", "127.0.0.1:9000", "ftp://host/", "http://"] {
            assert!(HttpBackend::new(url).is_err(), "{url}");
        }
        assert!(HttpBackend::new("http://127.0.0.1:9000/rpc").is_ok());
    }

    #[test]
    fn an_answer_is_a_result_or_says_whose_fault_it_is() {
        assert_eq!(
            told(200, br#"{"jsonrpc":"2.0","id":"5","result":{"a":1.10}}"#),
            Ok("{\"a\":1.10}".to_owned())
        );
        assert_eq!(
            told(200, br#"{"jsonrpc":"2.0","id":"5","result":null}"#),
            Ok("null".to_owned())
        );
        let fault = |status, body: &[u8]| {
            let remote = told(status, body).unwrap_err().remote.unwrap();
            (remote.code, remote.fault)
        };
        assert_eq!(
            fault(200, br#"{"id":"5","error":{"code":17,"message":"no stock"}}"#),
            (17, false)
        );
        assert_eq!(
            fault(200, br#"{"id":"5","error":{"code":-32603,"message":"oh"}}"#),
            (-32603, true)
        );
        assert_eq!(fault(503, b"<html>"), (503, true));
        assert_eq!(fault(404, b"<html>"), (404, false));
        assert_eq!(fault(200, b"<html>"), (200, true));
        assert_eq!(
            fault(500, br#"{"id":"5","error":{"code":17,"message":"oh"}}"#),
            (17, true)
        );
    }

    #[tokio::test]
    async fn a_call_is_posted_with_its_caller_its_time_and_its_trace_and_its_answer_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/rpc", listener.local_addr().unwrap());
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                let read = stream.read_buf(&mut request).await.unwrap();
                assert!(read > 0);
            }
            let body = r#"{"jsonrpc":"2.0","id":"5","result":[7]}"#;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        };
        let backend = Arc::new(HttpBackend::new(&url).unwrap());
        let invocation = invocation(Some("[1]"));
        let caller = invocation.context.caller;
        let (answer, request) = tokio::join!(backend.call(invocation), serving);
        assert_eq!(answer, Ok("[7]".to_owned()));
        assert!(request.starts_with("POST /rpc HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("traceparent: 00-0af7"), "{request}");
        assert!(request.contains("tracestate: a=1\r\n"), "{request}");
        assert!(
            request.contains(&format!("lapwing-caller: {caller}\r\n")),
            "{request}"
        );
        let (_, remaining) = request.split_once("lapwing-remaining-ms: ").unwrap();
        let remaining: u64 = remaining.lines().next().unwrap().parse().unwrap();
        assert!(remaining <= 5_000, "{remaining}");
        let body =
            r#"{"jsonrpc":"2.0","id":"00000000000000000000000000000005","method":"read","params":[1]}"#;
        assert!(request.ends_with(body), "{request}");
    }

    #[tokio::test]
    async fn a_call_to_a_service_that_is_not_there_may_be_made_elsewhere_and_its_address_is_told_to_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let backend = Arc::new(HttpBackend::new(&format!("http://{addr}/rpc")).unwrap());
        let error = backend.call(invocation(None)).await.unwrap_err();
        assert_eq!((error.code, &error.remote), (ErrorCode::PeerUnreachable, &None));
        assert!(!error.to_string().contains(&addr.port().to_string()), "{error}");
    }
}
