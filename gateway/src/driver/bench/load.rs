//! Asks one server from many connections at once, and notes how long each answer took.
//!
//! It speaks just the HTTP/1.1 that this room's servers answer with (a status and a `content-length`), since a whole
//! HTTP client would cost more than the server that is measured. Nothing but the benches uses it.

use std::fmt::{self, Debug, Formatter};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::clock;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest answer: a hundred times what a gateway says to a node.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// What a client asks next, by the numbers of the client and of its request; nothing when it is done.
type Next = dyn Fn(usize, usize) -> Option<Bytes> + Send + Sync;

/// Clients that each ask one thing after the other over a connection that they keep.
#[derive(Clone)]
pub(super) struct Load {
    clients: usize,
    lasting: Duration,
    next: Arc<Next>,
}

impl Debug for Load {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load")
            .field("clients", &self.clients)
            .field("lasting", &self.lasting)
            .finish_non_exhaustive()
    }
}

impl Load {
    /// A load that ends when `next` has nothing more for any client.
    pub(super) fn new(
        clients: usize,
        next: impl Fn(usize, usize) -> Option<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self {
            clients,
            lasting: Duration::MAX,
            next: Arc::new(next),
        }
    }

    /// The same load, ended after some time.
    pub(super) fn lasting(self, lasting: Duration) -> Self {
        Self { lasting, ..self }
    }

    /// The body of the answer to the first request of the first client.
    pub(super) async fn first_answer(&self, server: SocketAddr) -> io::Result<Bytes> {
        let request = (self.next)(0, 0).unwrap_or_default();
        let mut connection = Connection::open(server).await?;
        timeout(PATIENCE, connection.ask(&request)).await??;
        Ok(Bytes::copy_from_slice(connection.body()))
    }

    /// Puts the load on `server`.
    pub(super) async fn run(&self, server: SocketAddr) -> Taken {
        let began = clock::now().instant;
        let mut clients = JoinSet::new();
        for client in 0..self.clients {
            let load = self.clone();
            clients.spawn(async move { load.run_client(client, server, began).await });
        }
        let mut taken = Taken::default();
        while let Some(part) = clients.join_next().await {
            match part {
                Ok(part) => taken.add(part),
                Err(panicked) => taken.lose(panicked.to_string()),
            }
        }
        taken.all = clock::now().instant.duration_since(began);
        taken.each.sort_unstable();
        taken
    }

    async fn run_client(&self, client: usize, server: SocketAddr, began: Instant) -> Taken {
        let mut taken = Taken::default();
        let mut connection = match Connection::open(server).await {
            Ok(connection) => connection,
            Err(error) => {
                taken.lose(error.to_string());
                return taken;
            }
        };
        for nth in 0.. {
            if clock::now().instant.duration_since(began) >= self.lasting {
                break;
            }
            let Some(request) = (self.next)(client, nth) else {
                break;
            };
            let at = clock::now().instant;
            match timeout(PATIENCE, connection.ask(&request)).await {
                Ok(Ok(())) => taken.each.push(clock::now().instant.duration_since(at)),
                Ok(Err(error)) => {
                    // What follows on this connection may belong to this answer.
                    taken.lose(error.to_string());
                    break;
                }
                Err(_) => {
                    taken.lose(format!("there was no answer in {PATIENCE:?}"));
                    break;
                }
            }
        }
        taken
    }
}

/// What came of a load.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The time of each answered request, in order of length once all clients have ended.
    each: Vec<Duration>,
    all: Duration,
    /// Requests that were not answered with 200.
    pub(super) lost: usize,
    /// Why the first of them was not.
    pub(super) problem: Option<String>,
}

impl Taken {
    fn lose(&mut self, problem: String) {
        self.lost += 1;
        self.problem.get_or_insert(problem);
    }

    fn add(&mut self, part: Self) {
        self.each.extend(part.each);
        self.lost += part.lost;
        self.problem = self.problem.take().or(part.problem);
    }

    /// All requests, answered or not.
    pub(super) fn sent(&self) -> usize {
        self.each.len() + self.lost
    }

    /// Answered requests a second.
    pub(super) fn per_second(&self) -> f64 {
        self.each.len() as f64 / self.all.as_secs_f64()
    }

    /// The time that 99 of 100 answers did not exceed, in milliseconds.
    pub(super) fn p99_millis(&self) -> f64 {
        let last = self.each.len().saturating_sub(1);
        let position = (last as f64 * 0.99).round() as usize;
        self.each
            .get(position)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// A whole request, ready to be sent.
pub(super) fn request(method: &str, path: &str, body: &[u8]) -> Bytes {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: \
         {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat().into()
}

/// One connection; it is asked again only when the last answer is whole.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// The last answer.
    buffer: Vec<u8>,
    body: Range<usize>,
}

impl Connection {
    async fn open(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(4096),
            body: 0..0,
        })
    }

    /// Sends a request and reads its answer to the end; an answer other than 200 is an error.
    async fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let body = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if self.buffer.len() > ANSWER_BYTES_MAX {
                return Err(invalid("the answer does not end"));
            }
            match read_head(&self.buffer)? {
                Some(head) if self.buffer.len() >= head.body.end => break head,
                _ => (),
            }
        };
        if body.status != 200 {
            let text = String::from_utf8_lossy(self.buffer.get(body.body).unwrap_or_default());
            return Err(io::Error::other(format!(
                "the answer was {}: {text}",
                body.status
            )));
        }
        self.body = body.body;
        Ok(())
    }

    fn body(&self) -> &[u8] {
        self.buffer.get(self.body.clone()).unwrap_or_default()
    }
}

/// What the head of an answer says.
#[derive(Debug, Eq, PartialEq)]
struct Head {
    status: u16,
    /// Where the body is, or will be.
    body: Range<usize>,
}

/// Reads the head of an answer; `None` while it is not whole.
fn read_head(answer: &[u8]) -> io::Result<Option<Head>> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = answer.windows(END.len()).position(|four| four == END) else {
        return Ok(None);
    };
    let head = answer.get(..end).unwrap_or_default();
    let head = str::from_utf8(head).map_err(|_| invalid("the head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| invalid("there is no status"))?;
    let length: usize = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .filter(|length| *length <= ANSWER_BYTES_MAX)
        .ok_or_else(|| invalid("there is no length that can be"))?;
    let start = end + END.len();
    Ok(Some(Head {
        status,
        body: start..start + length,
    }))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::super::bare::Bare;
    use super::*;

    #[test]
    fn a_head_says_where_its_body_is() {
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\ndate: x\r\n\r\nabc";
        let head = read_head(answer).unwrap().unwrap();
        assert_eq!(head.status, 404);
        assert_eq!(&answer[head.body], b"abc");
        assert_eq!(read_head(&answer[..30]).unwrap(), None, "not whole yet");
    }

    #[test]
    fn an_answer_that_cannot_be_measured_is_an_error() {
        for answer in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(read_head(answer.as_bytes()).is_err(), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn every_request_of_every_client_is_answered_and_counted() {
        let bare = Bare::start(Bytes::from_static(b"{}")).await.unwrap();
        let load = Load::new(3, |_, nth| (nth < 7).then(|| request("POST", "/any", b"{}")));
        assert_eq!(load.first_answer(bare.local_addr()).await.unwrap(), "{}");
        let taken = load.run(bare.local_addr()).await;
        assert_eq!((taken.sent(), taken.lost), (21, 0));
        let addr = bare.local_addr();
        bare.stop().await;
        let taken = load.run(addr).await;
        assert_eq!((taken.sent(), taken.lost), (3, 3), "nobody serves there now");
        assert!(taken.problem.is_some());
    }
}
