//! Speaks to a node through its admin address, as anybody's program could.
//!
//! Plain HTTP, as the address is on loopback or a network that the operator trusts; no proxy is asked, whatever the
//! environment says. Which node to speak to is decided by [`Target`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::documents;
use super::failure::Failure;
use super::running::{self, Running};
use lapwing_base::innermost;

/// Which node a command speaks to.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Target {
    /// Admin address of the node [default: that of the only node of this user]
    #[arg(long, env = "LAPWING_ADMIN", value_name = "ADDR")]
    pub(crate) admin: Option<String>,

    /// Data directory of the node, which holds its admin address
    #[arg(long, env = "LAPWING_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl Target {
    /// The client for that node.
    ///
    /// # Errors
    ///
    /// When nothing says which node is meant, or it does not run.
    pub(crate) fn client(&self) -> Result<AdminClient, Failure> {
        self.patient_client(PATIENCE)
    }

    /// The client for that node, which waits so long for each answer.
    ///
    /// # Errors
    ///
    /// When nothing says which node is meant, or it does not run.
    pub(crate) fn patient_client(&self, patience: Duration) -> Result<AdminClient, Failure> {
        let address = match (&self.admin, &self.data_dir) {
            (Some(address), _) => address.clone(),
            (None, Some(dir)) => address_in(dir).ok_or_else(|| {
                Failure::new(
                    "find the node",
                    format!("none runs on {}: it has no admin.addr", dir.display()),
                )
                .with_hint(format!(
                    "start it with `lapwing node --data-dir {}`",
                    dir.display()
                ))
            })?,
            (None, None) => the_only(&running::list())?,
        };
        Admins::new(patience)
            .and_then(|admins| admins.at(&address))
            .map_err(|error| error.failing_to("find the node"))
    }
}

fn the_only(nodes: &[Running]) -> Result<String, Failure> {
    match nodes {
        [] => Err(Failure::new("find the node", "no node of this user runs here")
            .with_hint(
                "start one with `lapwing node`, or name one with --admin ADDR or --data-dir DIR; a relay is found where it has a --data-dir",
            )),
        [node] => address_in(&node.data_dir).ok_or_else(|| {
            Failure::new(
                "find the node",
                format!("{} has not opened its admin address yet", node.name),
            )
            .with_hint("try again in a moment")
        }),
        nodes => {
            let list: Vec<String> = nodes
                .iter()
                .map(|node| format!("{} --data-dir {}", node.name, node.data_dir.display()))
                .collect();
            Err(Failure::new(
                "find the node",
                format!("{} nodes of this user run here", nodes.len()),
            )
            .with_hint(format!("name one of them:\n    {}", list.join("\n    "))))
        }
    }
}

/// The admin address that a node has written into its data directory.
pub(crate) fn address_in(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join("admin.addr")).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// How long a person waits for an answer: a node answers within milliseconds, and within seconds on a machine
/// that has fifty other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest JSON answer: 64 rounds of a thousand nodes are 10 MiB.
const ANSWER_SIZE_MAX: usize = 64 * 1024 * 1024;

/// Speaks to any number of nodes, over connections that are kept open.
#[derive(Clone, Debug)]
pub(crate) struct Admins {
    patience: Duration,
    http: reqwest::Client,
}

/// One node's admin address.
#[derive(Clone, Debug)]
pub(crate) struct AdminClient {
    base: String,
    address: String,
    patience: Duration,
    http: reqwest::Client,
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// The address cannot be one.
    #[error("`{0}` is no admin address: HOST:PORT is expected")]
    Address(String),
    /// This side cannot speak HTTP at all.
    #[error("cannot build an HTTP client: {0}")]
    Client(String),
    /// Nobody answers.
    #[error("no node answers at {address}: {cause}")]
    Unreachable {
        /// Where.
        address: String,
        /// The innermost cause: the others only say that a request was made.
        cause: String,
    },
    /// The node took too long.
    #[error("the node at {address} did not answer within {} s", patience.as_secs())]
    TimedOut {
        /// Where.
        address: String,
        /// How long was waited.
        patience: Duration,
    },
    /// The node says no.
    #[error("{message}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// The node's words.
        message: String,
        /// What the node says to do.
        hint: Option<String>,
    },
    /// The answer is not that of a node.
    #[error("what answers at {address} is no node of ours: {problem}")]
    NotUnderstood {
        /// Where.
        address: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// What came could not be kept.
    #[error("cannot write what was received")]
    Disk(#[from] io::Error),
}

impl AdminError {
    /// Whether the same request may well succeed later or elsewhere: nobody said that it is wrong.
    pub(crate) const fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Address(_) | Self::Client(_) | Self::NotUnderstood { .. } | Self::Disk(_) => false,
        }
    }

    /// Whether there is nothing at the path that was asked for, as of another kind of node.
    pub(crate) const fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The failure of a command, with the node's hint or ours.
    pub(crate) fn failing_to(self, doing: impl Into<String>) -> Failure {
        let hint = match &self {
            Self::Refused { hint, .. } => hint.clone(),
            Self::Unreachable { .. } => Some(
                "see whether it runs, and give its address with --admin or its directory with --data-dir"
                    .into(),
            ),
            Self::TimedOut { .. } => {
                Some("the machine may be very busy; try again, or look at the node's log".into())
            }
            Self::Address(_) | Self::NotUnderstood { .. } => {
                Some("give the node's address with --admin HOST:PORT".into())
            }
            Self::Client(_) | Self::Disk(_) => None,
        };
        let failure = Failure::new(doing, self);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

/// How a node says no.
#[derive(Deserialize)]
struct Refusal {
    error: String,
    hint: Option<String>,
}

impl Admins {
    /// Waits at most `patience` for each answer. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// When the HTTP client cannot be built.
    pub(crate) fn new(patience: Duration) -> Result<Self, AdminError> {
        // The HTTP library wants to know its cryptography even where none is used. An earlier choice stays.
        let _earlier_choice = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            // No certificate is read from disk: only plain HTTP is spoken here.
            .tls_certs_only([])
            .connect_timeout(patience)
            .read_timeout(patience)
            .build()
            .map_err(|error| AdminError::Client(innermost(&error)))?;
        Ok(Self { patience, http })
    }

    /// The node at `HOST:PORT`.
    ///
    /// # Errors
    ///
    /// When the address cannot be one.
    pub(crate) fn at(&self, address: &str) -> Result<AdminClient, AdminError> {
        let wrong = || AdminError::Address(address.chars().take(64).collect());
        let host = address.trim().trim_start_matches("http://").trim_end_matches('/');
        let base = format!("http://{host}");
        let url = reqwest::Url::parse(&base).map_err(|_| wrong())?;
        if !url.has_host() || url.port_or_known_default().is_none_or(|port| port == 0) || url.path() != "/" {
            return Err(wrong());
        }
        Ok(AdminClient {
            base,
            address: host.to_owned(),
            patience: self.patience,
            http: self.http.clone(),
        })
    }
}

impl AdminClient {
    /// Asks for a document.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, AdminError> {
        let response = self.send(Method::GET, path, None).await?;
        self.read(response).await
    }

    /// Asks for a document that comes with another status than 200 where what it says is bad.
    pub(crate) async fn get_of_any_status(&self, path: &str) -> Result<Value, AdminError> {
        let request = self.http.get(format!("{}{path}", self.base));
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        let status = response.status();
        let document: Value = self.read(response).await?;
        // A refusal is no document.
        if !status.is_success() && document.get("error").is_some() {
            return Err(self.refused(status, document.to_string().as_bytes()));
        }
        Ok(document)
    }

    /// Asks for a document and reads it.
    pub(crate) async fn get_document<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        documents::read(self.get(path).await?).map_err(|error| self.not_understood(&error))
    }

    /// Asks the node to do something.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<String>,
    ) -> Result<T, AdminError> {
        let response = self.send(Method::POST, path, body).await?;
        self.read(response).await
    }

    /// Asks the node to make a call, whose service wants a token where one is given.
    pub(crate) async fn call(&self, body: String, token: Option<&str>) -> Result<Value, AdminError> {
        let mut request = self.http.post(format!("{}/rpc", self.base)).body(body);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        // Whatever the status: an error of a call is a JSON-RPC answer.
        self.read(response).await
    }

    /// Writes what the node sends into `file`, piece by piece; returns how many bytes came.
    pub(crate) async fn download(&self, path: &str, file: &mut tokio::fs::File) -> Result<u64, AdminError> {
        let mut response = self.send(Method::GET, path, None).await?;
        let mut size = 0;
        while let Some(piece) = response.chunk().await.map_err(|error| self.failed(&error))? {
            file.write_all(&piece).await?;
            size += piece.len() as u64;
        }
        file.sync_all().await?;
        Ok(size)
    }

    async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Response, AdminError> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(response).await?;
        Err(self.refused(status, &body))
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> AdminError {
        match serde_json::from_slice::<Refusal>(body) {
            Ok(refusal) => AdminError::Refused {
                status: status.as_u16(),
                message: refusal.error,
                hint: refusal.hint,
            },
            Err(_) => AdminError::NotUnderstood {
                address: self.address.clone(),
                problem: format!("it answered with status {status}"),
            },
        }
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, AdminError> {
        let body = self.body(response).await?;
        // An answer without a body stands for "done".
        let body = if body.is_empty() { b"null" } else { body.as_slice() };
        serde_json::from_slice(body).map_err(|error| self.not_understood(&error))
    }

    fn not_understood(&self, error: &serde_json::Error) -> AdminError {
        AdminError::NotUnderstood {
            address: self.address.clone(),
            problem: error.to_string(),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, AdminError> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.failed(&error))? {
            if body.len() + piece.len() > ANSWER_SIZE_MAX {
                return Err(AdminError::NotUnderstood {
                    address: self.address.clone(),
                    problem: format!("its answer has more than {ANSWER_SIZE_MAX} bytes"),
                });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn failed(&self, error: &reqwest::Error) -> AdminError {
        if error.is_timeout() {
            AdminError::TimedOut {
                address: self.address.clone(),
                patience: self.patience,
            }
        } else {
            AdminError::Unreachable {
                address: self.address.clone(),
                cause: innermost(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_written_as_people_write_it() {
        let admins = Admins::new(PATIENCE).unwrap();
        for right in [
            "127.0.0.1:8001",
            "http://127.0.0.1:8001/",
            "localhost:8001",
            "[::1]:8001",
        ] {
            assert!(admins.at(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "127.0.0.1:0",
            "127.0.0.1:99999",
            "http://",
            "a b:1",
            "host:1/path",
        ] {
            assert!(matches!(admins.at(wrong), Err(AdminError::Address(_))), "{wrong}");
        }
    }

    #[test]
    fn with_several_nodes_the_error_lists_how_to_name_each() {
        let node = |name: &str| Running {
            peer_id: format!("12D3{name}"),
            name: name.to_owned(),
            data_dir: PathBuf::from(format!("/data/{name}")),
        };
        let text = the_only(&[node("alice"), node("bob")])
            .unwrap_err()
            .text()
            .unwrap();
        assert_eq!(
            text,
            "lapwing: failed to find the node: 2 nodes of this user run here\n  name one of them:\n    \
             alice --data-dir /data/alice\n    bob --data-dir /data/bob"
        );
    }
}
