//! Home, main, main, home: the mains and the home that answers are processes, the home that calls is in this one, and so
//! is another one behind the far main, whose service counts.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapwing::{MainSource, Relay, RelayConfig, RelayHandle};
use lapwing_base::Role;
use lapwing_federation::{Announcement, Balancing, ErrorCode, Policy, Service, ServiceName, Token};
use serde::Deserialize;
use serde_json::json;

use super::caller::{Caller, HomeCaller, HttpCaller, draw};
use super::counting::Executions;
use super::loss::Killed;
use super::measuring::now;
use super::processes::Process;
use crate::cli::failure::Failure;

/// All four nodes, and the one that counts.
#[derive(Debug)]
pub(super) struct Relays {
    home: RelayHandle,
    counting_home: RelayHandle,
    executions: Executions,
    near_url: String,
    far_url: String,
    text: String,
    echo: Arc<HomeCaller>,
    count: Arc<HomeCaller>,
    wait: Arc<HomeCaller>,
    nobody: Arc<HomeCaller>,
    http: reqwest::Client,
    folder: PathBuf,
    near: Process,
    far: Process,
    _far_home: Process,
}

/// What a relay prints when it answers.
#[derive(Debug, Deserialize)]
struct Started {
    url: String,
}

/// The service of the far home, which says what it is told; the one that counts; and one that nobody offers.
const ECHO: &str = "bench-echo";
const COUNT: &str = "bench-count";
const NOBODY: &str = "bench-nobody";

/// In the measurement's folder.
const TOKEN_FILE: &str = "token";

/// Within so long every node has heard of every service: its mains are found and greeted.
const READY_MAX: Duration = Duration::from_secs(30);
const READY_LOOK: Duration = Duration::from_millis(20);

impl Relays {
    /// Starts all of them, and waits until calls come through. Each says `size` bytes.
    ///
    /// # Errors
    /// When one does not start.
    pub(super) async fn start(folder: &Path, size: usize) -> Result<Self, Failure> {
        // Mains that share a secret take each other for neighbours.
        let secret = format!("{:032x}", draw());
        fs::write(folder.join(TOKEN_FILE), &secret).map_err(|error| Failure::new("write a secret", error))?;
        let token = Token::new(&secret).map_err(|error| Failure::new("share a secret", error))?;
        let (far, far_url) = main(Killed::Far, None, None, folder).await?;
        let (near, near_url) = main(Killed::Near, None, Some(&far_url), folder).await?;
        let service = format!("{ECHO}=echo:");
        let arguments = ["--port", "0", "--connect", &far_url, "--service", &service];
        let (far_home, _) = relay("far home", &arguments, folder).await?;
        let executions = Executions::default();
        let counting_home = home(&far_url, &token).await?;
        let methods = executions.methods();
        let mut service = Service::new(name(COUNT)?);
        service.methods = methods.names();
        let offered = counting_home.federation().offer(service, Arc::new(methods));
        offered.map_err(|error| Failure::new("offer a service", error))?;
        let home = home(&near_url, &token).await?;
        let text = "x".repeat(size);
        let said = json!(text).to_string();
        let calls = |service, method, expected| {
            let (federation, arguments) = (home.federation().clone(), json!([text]).to_string());
            let caller = HomeCaller::new(federation, name(service)?, method, arguments, expected);
            Ok::<_, Failure>(Arc::new(caller))
        };
        let relays = Self {
            echo: calls(ECHO, "echo", Ok(said.clone()))?,
            count: calls(COUNT, "count", Ok(said))?,
            wait: calls(COUNT, "wait", Ok(String::new()))?,
            nobody: calls(NOBODY, "echo", Err(ErrorCode::ServiceNotFound))?,
            home,
            counting_home,
            executions,
            near_url,
            far_url,
            text,
            http: client()?,
            folder: folder.to_owned(),
            near,
            far,
            _far_home: far_home,
        };
        relays.wait_until_ready().await?;
        Ok(relays)
    }

    async fn wait_until_ready(&self) -> Result<(), Failure> {
        let until = now() + READY_MAX;
        loop {
            match self.reach().await {
                Ok(()) => return Ok(()),
                Err(why) if now() >= until => return Err(Failure::new("call across two mains", why)),
                Err(_) => tokio::time::sleep(READY_LOOK).await,
            }
        }
    }

    /// Calls each service behind the far main once.
    ///
    /// # Errors
    /// Why one has not answered.
    pub(super) async fn reach(&self) -> Result<(), String> {
        self.caller().call().await?;
        let counted = self.count.call(self.counted_arguments(0)).await;
        counted.map(drop).map_err(|(_, message)| message)
    }

    /// Calls the far home within the near one.
    pub(super) fn caller(&self) -> Caller {
        Caller::Home(Arc::clone(&self.echo))
    }

    /// Calls what nobody offers.
    pub(super) fn caller_of_nobody(&self) -> Caller {
        Caller::Home(Arc::clone(&self.nobody))
    }

    /// Calls the far home by HTTP to the near home.
    pub(super) fn caller_at_home(&self) -> Caller {
        self.http_caller(&format!("http://{}", self.home.http_addr()))
    }

    /// Calls the far home by HTTP to the near main.
    pub(super) fn caller_at_main(&self) -> Caller {
        self.http_caller(&self.near_url)
    }

    fn http_caller(&self, url: &str) -> Caller {
        let caller = HttpCaller::new(self.http.clone(), url, ECHO, "echo", &self.text);
        Caller::Http(Arc::new(caller))
    }

    /// Calls the service that counts.
    pub(super) fn counting_caller(&self) -> Arc<HomeCaller> {
        Arc::clone(&self.count)
    }

    /// What it is told.
    pub(super) fn counted_arguments(&self, number: usize) -> String {
        json!([number, self.text]).to_string()
    }

    /// What it has counted.
    pub(super) const fn executions(&self) -> &Executions {
        &self.executions
    }

    /// Calls what does not answer.
    pub(super) fn waiting_caller(&self) -> Arc<HomeCaller> {
        Arc::clone(&self.wait)
    }

    /// Whether the home that calls is connected with its main, as far as it knows.
    pub(super) fn has_main(&self) -> bool {
        !self.home.federation().neighbours().is_empty()
    }

    /// Kills a main, as power that fails does.
    ///
    /// # Errors
    /// When it cannot be.
    pub(super) async fn kill(&mut self, main: Killed) -> Result<(), Failure> {
        let process = match main {
            Killed::Near => &mut self.near,
            Killed::Far => &mut self.far,
        };
        process.kill().await
    }

    /// Starts a main again where it was; says when it answered.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) async fn start_again(&mut self, killed: Killed) -> Result<Instant, Failure> {
        let (process, url, peer) = match killed {
            Killed::Near => (&mut self.near, &self.near_url, Some(self.far_url.as_str())),
            Killed::Far => (&mut self.far, &self.far_url, None),
        };
        let (started, _) = main(killed, Some(url), peer, &self.folder).await?;
        *process = started;
        Ok(now())
    }

    /// Ends the nodes of this process; the others are ended when this returns.
    pub(super) async fn shutdown(self) {
        // They keep the node.
        drop((self.echo, self.count, self.wait, self.nobody));
        tokio::join!(self.home.shutdown(), self.counting_home.shutdown());
    }
}

/// Starts a main, where it was before if it was; it and its URL.
async fn main(
    which: Killed,
    was_at: Option<&str>,
    peer: Option<&str>,
    folder: &Path,
) -> Result<(Process, String), Failure> {
    let name = match which {
        Killed::Near => "near main",
        Killed::Far => "far main",
    };
    // Whoever comes back is who it was.
    let data_dir = folder.join(name);
    let data_dir = data_dir.to_string_lossy();
    let port = was_at.and_then(|url| url.rsplit(':').next()).unwrap_or("0");
    let mut arguments = vec![
        "--server",
        "--disable-registry",
        "--port",
        port,
        "--data-dir",
        &data_dir,
    ];
    arguments.extend(peer.into_iter().flat_map(|peer| ["--peers", peer]));
    relay(name, &arguments, folder).await
}

/// Starts a relay in a process of its own; it and its URL.
async fn relay(name: &'static str, arguments: &[&str], folder: &Path) -> Result<(Process, String), Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::new("find this program", error))?;
    let common = ["--json", "--log-level", "warn", "relay", "--host", "127.0.0.1"];
    let here = ["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"];
    let token = folder.join(TOKEN_FILE);
    let arguments = common.iter().chain(&here).chain(arguments).map(OsStr::new);
    let arguments = arguments.chain(["--token-file".as_ref(), token.as_os_str()]);
    let mut process = Process::start(name, &program, arguments, folder)
        .map_err(|error| Failure::new(format!("start the {name}"), error))?;
    let line = process.first_line().await?;
    let started: Started =
        serde_json::from_str(&line).map_err(|_| process.failure("it has printed something else"))?;
    Ok((process, started.url))
}

/// A home of this process that offers nothing by itself.
async fn home(main: &str, token: &Token) -> Result<RelayHandle, Failure> {
    let main: MainSource = main
        .parse()
        .map_err(|error| Failure::new("read a main's URL", error))?;
    let listen = "/ip4/127.0.0.1/udp/0/quic-v1".parse();
    let config = RelayConfig {
        role: Role::Home,
        name: None,
        data_dir: None,
        http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        listen: vec![listen.map_err(|error| Failure::new("listen", error))?],
        mains: vec![main],
        gateways: Vec::new(),
        cluster: None,
        policy: Policy {
            token: Some(token.clone()),
            ..Policy::default()
        },
        services: Vec::new(),
        has_echo: false,
        hops_max: Announcement::HOPS_DEFAULT,
        balancing: Balancing::default(),
        peers_may_change: false,
    };
    Relay::start(config)
        .await
        .map_err(|error| Failure::new("start a home", error))
}

fn name(text: &str) -> Result<ServiceName, Failure> {
    text.parse()
        .map_err(|error| Failure::new("name a service", error))
}

fn client() -> Result<reqwest::Client, Failure> {
    // Straight to this machine, whatever proxy its user has set.
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .map_err(|error| Failure::new("speak HTTP", error))
}
