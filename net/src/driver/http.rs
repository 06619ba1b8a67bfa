//! The little HTTP that a WebSocket begins with, and that proxies and gateways speak, read with a bound.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The largest head that we read: what nginx takes, and forty times what ours take.
const HEAD_MAX: usize = 8 * 1024;

/// More headers than proxies and browsers send.
const HEADERS_MAX: usize = 64;

/// What others say of themselves is cut to this in errors.
const REASON_MAX: usize = 80;

/// The head of a message, and what has arrived behind it.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) bytes: Vec<u8>,
    pub(crate) rest: Vec<u8>,
}

impl Head {
    /// Reads up to the empty line.
    ///
    /// # Errors
    /// When the stream ends or fails before it, or the head is larger than any that we take.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(1024);
        loop {
            // A terminator may lie across two reads.
            let searched = bytes.len().saturating_sub(END.len() - 1);
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let found = bytes[searched..]
                .windows(END.len())
                .position(|window| window == END);
            if let Some(at) = found {
                let rest = bytes.split_off(searched + at + END.len());
                return Ok(Self { bytes, rest });
            }
            if bytes.len() > HEAD_MAX {
                let error = "the head of the message is too large";
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

const END: &[u8] = b"\r\n\r\n";

/// What somebody who connected asks for.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Request {
    /// A WebSocket; with the key to answer.
    WebSocket { key: String },
    /// Something that is HTTP, such as the page of a web site.
    Page,
    /// Something else.
    Nonsense,
}

impl Request {
    pub(crate) fn parse(head: &[u8]) -> Self {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(head) {
            Ok(httparse::Status::Complete(_)) => (),
            _ => return Self::Nonsense,
        }
        let headers = &*request.headers;
        let upgrade =
            has_token(headers, "upgrade", "websocket") && has_token(headers, "connection", "upgrade");
        match value(headers, "sec-websocket-key") {
            // RFC 6455 4.2.1: 16 bytes in base 64.
            Some(key) if upgrade && request.method == Some("GET") && key.len() == 24 => {
                Self::WebSocket { key: key.to_owned() }
            }
            _ => Self::Page,
        }
    }
}

/// The answer that makes a WebSocket of the connection.
pub(crate) fn switching(key: &str) -> String {
    let accept = derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// What a browser that lost its way gets.
pub(crate) const PAGE: &str = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\
     Content-Type: text/plain\r\nContent-Length: 38\r\n\r\nThis port speaks WebSocket to peers.\r\n";

/// What a request that is none gets.
pub(crate) const BAD_REQUEST: &str =
    "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// The request for a WebSocket.
pub(crate) fn upgrade_request(authority: &str, path: &str, key: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// What an HTTP server or proxy answered.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Printable and short: it goes into errors.
    pub(crate) reason: String,
    pub(crate) body: BodySize,
    accept: Option<String>,
    is_websocket: bool,
}

/// How the end of a body is known (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BodySize {
    Known(usize),
    Chunked,
    UntilClosed,
}

impl Response {
    /// Nothing when it is not HTTP.
    pub(crate) fn parse(head: &[u8]) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(head) {
            Ok(httparse::Status::Complete(_)) => (),
            _ => return None,
        }
        let headers = &*response.headers;
        let body = match value(headers, "content-length") {
            _ if has_token(headers, "transfer-encoding", "chunked") => BodySize::Chunked,
            Some(length) => BodySize::Known(length.parse().ok()?),
            None => BodySize::UntilClosed,
        };
        let reason = response.reason.unwrap_or_default().chars();
        Some(Self {
            status: response.code?,
            reason: reason.filter(|c| !c.is_control()).take(REASON_MAX).collect(),
            body,
            accept: value(headers, "sec-websocket-accept").map(str::to_owned),
            is_websocket: has_token(headers, "upgrade", "websocket"),
        })
    }

    /// Whether it made a WebSocket of the connection, in answer to the request with this key.
    pub(crate) fn switches(&self, key: &str) -> bool {
        let expected = derive_accept_key(key.as_bytes());
        self.status == 101 && self.is_websocket && self.accept.as_ref() == Some(&expected)
    }
}

/// Sends a request that asks to close the connection, and reads the answer: its status and its body.
///
/// # Errors
/// When the connection fails, the answer is not HTTP, or the body is larger than `body_max`.
pub(crate) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
    body_max: usize,
) -> io::Result<(u16, Vec<u8>)> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    stream.write_all(request).await?;
    let head = Head::read(stream).await?;
    let response = Response::parse(&head.bytes).ok_or_else(|| invalid("the answer is not HTTP"))?;
    let mut body = head.rest;
    loop {
        if body.len() > body_max {
            return Err(invalid("the answer is too large"));
        }
        let whole = match response.body {
            BodySize::Known(size) => body.get(..size).map(<[u8]>::to_vec),
            BodySize::Chunked => dechunked(&body).ok_or_else(|| invalid("the answer is not HTTP"))?,
            BodySize::UntilClosed => None,
        };
        if let Some(whole) = whole {
            return Ok((response.status, whole));
        }
        if stream.read_buf(&mut body).await? == 0 {
            return match response.body {
                BodySize::UntilClosed => Ok((response.status, body)),
                BodySize::Known(_) | BodySize::Chunked => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
}

/// The body in chunks that have arrived whole; nothing inside while some are missing, nothing at all if they are no
/// chunks.
fn dechunked(mut chunks: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        match httparse::parse_chunk_size(chunks).ok()? {
            httparse::Status::Partial => return Some(None),
            httparse::Status::Complete((_, 0)) => return Some(Some(body)),
            httparse::Status::Complete((line, size)) => {
                let size = usize::try_from(size).ok()?;
                let end = line.checked_add(size)?;
                let Some(chunk) = chunks.get(line..end) else {
                    return Some(None);
                };
                body.extend_from_slice(chunk);
                // A line end follows.
                match chunks.get(end..end + 2) {
                    Some(b"\r\n") => chunks = &chunks[end + 2..],
                    Some(_) => return None,
                    None => return Some(None),
                }
            }
        }
    }
}

fn value<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let header = headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case(name))?;
    str::from_utf8(header.value).ok().map(str::trim)
}

fn has_token(headers: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    let values = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case(name));
    let mut tokens = values
        .filter_map(|header| str::from_utf8(header.value).ok())
        .flat_map(|value| value.split(','));
    tokens.any(|each| each.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, 1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    #[test]
    fn a_request_for_a_websocket_is_answered_as_the_rfc_shows() {
        let request = upgrade_request("main.example:443", "/", KEY);
        let Request::WebSocket { key } = Request::parse(request.as_bytes()) else {
            panic!("no WebSocket was asked for");
        };
        let answer = switching(&key);
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let response = Response::parse(answer.as_bytes()).unwrap();
        assert!(response.switches(KEY));
        assert!(!response.switches("AAAAAAAAAAAAAAAAAAAAAA=="));
    }

    #[test]
    fn what_asks_for_no_websocket_is_told_apart_from_nonsense() {
        assert_eq!(
            Request::parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            Request::Page
        );
        assert_eq!(Request::parse(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), Request::Nonsense);
        assert_eq!(Response::parse(b"220 mail.example ESMTP\r\n\r\n"), None);
    }

    #[test]
    fn the_page_says_its_own_length() {
        let body = PAGE.split_once("\r\n\r\n").unwrap().1;
        assert!(PAGE.contains(&format!("Content-Length: {}\r\n", body.len())));
    }

    #[tokio::test]
    async fn a_head_is_read_to_its_end_and_what_follows_is_kept() {
        let mut stream: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nmore";
        let head = Head::read(&mut stream).await.unwrap();
        assert_eq!(head.bytes, b"HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(head.rest, b"more");
    }

    #[tokio::test]
    async fn a_body_ends_as_its_head_says() {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nhello",
        ] {
            let body = answered(answer.as_bytes(), 64).await.unwrap();
            assert_eq!(body, (200, b"hello".to_vec()), "{answer}");
        }
    }

    #[tokio::test]
    async fn bodies_that_are_too_large_or_cut_are_refused() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcdef",
            &[b"HTTP/1.0 200 OK\r\n\r\n", &[b'a'; 100][..]].concat(),
        ] {
            answered(answer, 64).await.unwrap_err();
        }
    }

    async fn answered(answer: &[u8], body_max: usize) -> io::Result<(u16, Vec<u8>)> {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        exchange(&mut ours, b"GET / HTTP/1.1\r\n\r\n", body_max).await
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let endless = vec![b'a'; 1 << 20];
        let error = Head::read(&mut endless.as_slice()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let cut: &[u8] = b"GET / HT";
        let error = Head::read(&mut &*cut).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
