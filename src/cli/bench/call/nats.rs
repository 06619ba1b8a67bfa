//! Four nats-servers, leaf, hub, hub, leaf, with TLS between them, and as much of their protocol as requests need.
//!
//! Whoever asks and whoever answers are in this process, each at a leaf of its own, without TLS: as a home's own callers are.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::caller::Caller;
use super::measuring::now;
use super::processes::Process;
use crate::cli::failure::Failure;

/// Four servers with a client at each end.
#[derive(Debug)]
pub(super) struct Nats {
    client: Arc<Client>,
    _tasks: JoinSet<()>,
    _servers: [Process; 4],
}

const SUBJECT: &str = "bench.echo";

/// Within so long a server answers, and everybody has heard of every subject.
const READY_MAX: Duration = Duration::from_secs(30);
const READY_LOOK: Duration = Duration::from_millis(20);

/// How long an answer may take that should take a fraction of it.
const PATIENCE: Duration = Duration::from_secs(10);

impl Nats {
    /// Starts four of them, and waits until requests of `size` bytes come through; `None` where there is no such program.
    ///
    /// # Errors
    /// When one does not start.
    pub(super) async fn start(folder: &Path, size: usize) -> Result<Option<Self>, Failure> {
        certify(folder)?;
        let ports = free_ports()?;
        let hub =
            |name, [own, cluster, other, leaves]: [u16; 4]| hub(folder, name, own, cluster, other, leaves);
        let [near, far] = [
            [ports[0], ports[1], ports[2], ports[3]],
            [ports[4], ports[2], ports[1], ports[5]],
        ];
        let (near_leaf, far_leaf) = (ports[6], ports[7]);
        let configs = [
            ("near hub", hub("near", near)),
            ("far hub", hub("far", far)),
            ("near leaf", leaf(folder, "near-leaf", near_leaf, near[3])),
            ("far leaf", leaf(folder, "far-leaf", far_leaf, far[3])),
        ];
        let mut servers = Vec::new();
        for (name, config) in configs {
            let path = folder.join(format!("{name}.conf"));
            fs::write(&path, config).map_err(|error| Failure::new("write a configuration", error))?;
            let arguments = ["-c".as_ref(), path.as_os_str()];
            match Process::start(name, "nats-server".as_ref(), arguments, folder) {
                Ok(process) => servers.push(process),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Failure::new("start nats-server", error)),
            }
        }
        let mut tasks = JoinSet::new();
        let (answering, reader) = connect(far_leaf, &mut servers).await?;
        answering
            .write(&format!("SUB {SUBJECT} 1\r\n"))
            .await
            .map_err(lost)?;
        tasks.spawn(async move {
            // What it ends with shows in requests that are not answered.
            let _ended = answer(&answering, reader).await;
        });
        let (connection, reader) = connect(near_leaf, &mut servers).await?;
        let client = Arc::new(Client::new(connection, size));
        client.subscribe().await.map_err(lost)?;
        let receiving = Arc::clone(&client);
        tasks.spawn(async move {
            let _ended = receiving.receive(reader).await;
        });
        let until = now() + READY_MAX;
        while let Err(why) = client.request().await {
            if now() >= until {
                return Err(Failure::new("ask across four nats-servers", why));
            }
            tokio::time::sleep(READY_LOOK).await;
        }
        let servers = <[Process; 4]>::try_from(servers)
            .map_err(|_| Failure::new("start nats-server", "there are not four of them"))?;
        Ok(Some(Self {
            client,
            _tasks: tasks,
            _servers: servers,
        }))
    }

    /// Asks the far end.
    pub(super) fn caller(&self) -> Caller {
        Caller::Nats(Arc::clone(&self.client))
    }
}

fn lost(error: io::Error) -> Failure {
    Failure::new("speak with nats-server", error)
}

/// A certificate for this machine and its key, which all four show and trust.
fn certify(folder: &Path) -> Result<(), Failure> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]);
    let made = made.map_err(|error| Failure::new("make a certificate", error))?;
    let failed = |error| Failure::new("write a certificate", error);
    fs::write(folder.join("cert.pem"), made.cert.pem()).map_err(failed)?;
    fs::write(folder.join("key.pem"), made.key_pair.serialize_pem()).map_err(failed)
}

/// Ports that nobody has now. Somebody may have one when it is used; then a server does not start.
fn free_ports() -> Result<[u16; 8], Failure> {
    let failed = |error| Failure::new("find free ports", error);
    let mut listeners = Vec::new();
    let mut ports = [0; 8];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        *port = listener.local_addr().map_err(failed)?.port();
        // Kept until all are known, so that they are different ones.
        listeners.push(listener);
    }
    Ok(ports)
}

fn hub(folder: &Path, name: &str, own: u16, cluster: u16, other: u16, leaves: u16) -> String {
    let tls = tls(folder);
    format!(
        "server_name: {name}\nlisten: 127.0.0.1:{own}\n\
         cluster {{ name: bench, listen: 127.0.0.1:{cluster}, routes: [nats-route://127.0.0.1:{other}], {tls} }}\n\
         leafnodes {{ listen: 127.0.0.1:{leaves}, {tls} }}\n"
    )
}

fn leaf(folder: &Path, name: &str, own: u16, hub: u16) -> String {
    let tls = tls(folder);
    format!(
        "server_name: {name}\nlisten: 127.0.0.1:{own}\n\
         leafnodes {{ remotes: [{{ url: \"tls://127.0.0.1:{hub}\", {tls} }}] }}\n"
    )
}

fn tls(folder: &Path) -> String {
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| folder.join(name).display().to_string());
    format!("tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {certificate:?}, timeout: 10 }}")
}

/// Connects with a server as soon as it answers.
async fn connect(port: u16, servers: &mut [Process]) -> Result<(Connection, OwnedReadHalf), Failure> {
    let until = now() + READY_MAX;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = loop {
        if let Some(ended) = servers
            .iter_mut()
            .find_map(|server| server.has_ended().then_some(server))
        {
            return Err(ended.failure("it has ended"));
        }
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(error) if now() >= until => return Err(lost(error)),
            Err(_) => tokio::time::sleep(READY_LOOK).await,
        }
    };
    stream.set_nodelay(true).map_err(lost)?;
    let (reader, writer) = stream.into_split();
    let connection = Connection {
        unsent: Mutex::default(),
        writer: tokio::sync::Mutex::new(writer),
    };
    let hello = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";
    connection.write(hello).await.map_err(lost)?;
    Ok((connection, reader))
}

/// The sending side of a connection with a server.
#[derive(Debug)]
struct Connection {
    /// What leaves with the next write, whoever makes that.
    unsent: Mutex<Vec<u8>>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
}

impl Connection {
    /// Sends it, with what others want to send at the same time.
    async fn write(&self, text: &str) -> io::Result<()> {
        self.unsent().extend_from_slice(text.as_bytes());
        let mut writer = self.writer.lock().await;
        let unsent = std::mem::take(&mut *self.unsent());
        writer.write_all(&unsent).await
    }

    fn unsent(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for one subject, many times at once.
#[derive(Debug)]
pub(super) struct Client {
    connection: Connection,
    text: String,
    asked: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>,
}

/// Under which answers come; behind it stands the number of the request.
const INBOX: &str = "_INBOX.bench.";

impl Client {
    fn new(connection: Connection, size: usize) -> Self {
        Self {
            connection,
            text: "x".repeat(size),
            asked: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    async fn subscribe(&self) -> io::Result<()> {
        self.connection.write(&format!("SUB {INBOX}* 1\r\n")).await
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Vec<u8>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks once, and looks whether the answer is right.
    pub(super) async fn request(&self) -> Result<(), String> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        self.waiting().insert(number, answered);
        let Self { text, .. } = self;
        let request = format!("PUB {SUBJECT} {INBOX}{number} {}\r\n{text}\r\n", text.len());
        let written = self.connection.write(&request).await;
        written.map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        match answer {
            Ok(Ok(answer)) if answer == text.as_bytes() => Ok(()),
            Ok(Ok(_)) => Err("nobody answers".to_owned()),
            Ok(Err(_)) => Err("the connection is lost".to_owned()),
            Err(_) => Err(format!("no answer has come in {PATIENCE:?}")),
        }
    }

    async fn receive(&self, mut reader: OwnedReadHalf) -> io::Result<()> {
        let mut buffer = Buffer::default();
        loop {
            while let Some(line) = buffer.next() {
                match line {
                    Line::Message { subject, payload, .. } => {
                        let number = subject.strip_prefix(INBOX).and_then(|number| number.parse().ok());
                        let waiter = number.and_then(|number: u64| self.waiting().remove(&number));
                        if let Some(waiter) = waiter {
                            // Whoever has asked may have gone.
                            let _gone = waiter.send(payload);
                        }
                    }
                    Line::Ping => self.connection.write("PONG\r\n").await?,
                    Line::Other => {}
                }
            }
            buffer.fill(&mut reader).await?;
        }
    }
}

/// Answers every request with what it says; the answers to what has come together leave together.
async fn answer(connection: &Connection, mut reader: OwnedReadHalf) -> io::Result<()> {
    let mut buffer = Buffer::default();
    loop {
        let mut answers = String::new();
        while let Some(line) = buffer.next() {
            match line {
                Line::Message {
                    reply: Some(reply),
                    payload,
                    ..
                } => {
                    let text = String::from_utf8_lossy(&payload);
                    answers.push_str(&format!("PUB {reply} {}\r\n{text}\r\n", payload.len()));
                }
                Line::Ping => answers.push_str("PONG\r\n"),
                Line::Message { reply: None, .. } | Line::Other => {}
            }
        }
        if !answers.is_empty() {
            connection.write(&answers).await?;
        }
        buffer.fill(&mut reader).await?;
    }
}

/// What has come from a server and was not looked at.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Up to here it was looked at.
    from: usize,
}

/// What a server says.
#[derive(Debug, Eq, PartialEq)]
enum Line {
    Message {
        subject: String,
        reply: Option<String>,
        payload: Vec<u8>,
    },
    Ping,
    Other,
}

const END: &[u8] = b"\r\n";

impl Buffer {
    async fn fill(&mut self, reader: &mut OwnedReadHalf) -> io::Result<()> {
        self.bytes.drain(..self.from);
        self.from = 0;
        match reader.read_buf(&mut self.bytes).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The next one, if it has come whole.
    fn next(&mut self) -> Option<Line> {
        let rest = &self.bytes[self.from..];
        let length = rest.windows(END.len()).position(|bytes| bytes == END)?;
        let line = String::from_utf8_lossy(&rest[..length]);
        let words: Vec<&str> = line.split(' ').collect();
        let mut end = length + END.len();
        let parsed = match *words.as_slice() {
            ["PING"] => Line::Ping,
            // `HMSG` has a header that counts: such a one says that nobody answers.
            ["MSG" | "HMSG", subject, _, .., size] => {
                let size: usize = size.parse().ok()?;
                let payload = rest.get(end..end + size + END.len())?[..size].to_vec();
                end += size + END.len();
                let reply = match *words.as_slice() {
                    ["MSG", _, _, reply, _] => Some(reply.to_owned()),
                    _ => None,
                };
                let subject = subject.to_owned();
                Line::Message {
                    subject,
                    reply,
                    payload,
                }
            }
            _ => Line::Other,
        };
        self.from += end;
        Some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_read_as_it_comes_whole() {
        let said =
            b"INFO {}\r\nPING\r\nMSG a.b 1 in.7 5\r\nhel\r\n\r\nMSG c 1 2\r\nhi\r\nHMSG d 1 4 4\r\nNATS\r\n";
        let message = |subject: &str, reply: Option<&str>, payload: &[u8]| Line::Message {
            subject: subject.to_owned(),
            reply: reply.map(str::to_owned),
            payload: payload.to_vec(),
        };
        let expected = [
            Line::Other,
            Line::Ping,
            message("a.b", Some("in.7"), b"hel\r\n"),
            message("c", None, b"hi"),
            message("d", None, b"NATS"),
        ];
        let mut buffer = Buffer::default();
        let mut lines = Vec::new();
        for byte in said {
            buffer.bytes.push(*byte);
            lines.extend(buffer.next());
        }
        assert_eq!(lines, expected);
        assert_eq!(buffer.from, said.len());
    }
}
