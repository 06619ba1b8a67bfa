//! `lapwing gateway`: runs the discovery service until it is asked to end.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use lapwing_gateway::{Gateway, GatewayConfig};

use super::failure::Failure;
use super::interrupt::{Interrupt, Interrupts};
use super::output::Output;
use crate::config::user_data_dir;

/// What can be set of a gateway. Each falls back to its `LAPWING_*` variable, then to the `GATEWAY_*` variable that
/// older deployments set, then to its default.
#[derive(Args, Clone, Debug)]
pub(crate) struct GatewayFlags {
    /// Address or host name to listen on [default: 0.0.0.0]
    #[arg(long, env = "LAPWING_HOST")]
    host: Option<String>,

    /// Port to listen on; 0 picks a free one, see DATA_DIR/gateway.addr [default: 8080]
    #[arg(long, env = "LAPWING_PORT")]
    port: Option<u16>,

    /// Where the gateway keeps what it must not forget [default: the user's data directory]
    #[arg(long, env = "LAPWING_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Seconds after which a node that was not heard of is taken for failed [default: 300]
    #[arg(long, env = "LAPWING_NODE_TIMEOUT", value_name = "SECONDS")]
    node_timeout: Option<u64>,

    /// Never let a node found a cluster: for a gateway whose data were lost while its cluster lives on
    #[arg(
        long,
        env = "LAPWING_NO_GENESIS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "BOOL",
        value_parser = BoolishValueParser::new()
    )]
    no_genesis: Option<bool>,
}

/// Runs a gateway.
pub(crate) async fn run(flags: GatewayFlags, output: Output) -> Result<(), Failure> {
    let mut interrupts = Interrupts::catch().map_err(|error| Failure::new("catch signals", error))?;
    let config = flags.config().await?;
    let data_dir = config.data_dir.clone();
    let gateway = tokio::select! {
        biased;
        _ = interrupts.next() => return Err(Failure::Interrupted),
        started = Gateway::start(config) => {
            started.map_err(|error| Failure::new("start the gateway", error))?
        }
    };
    let url = format!("http://{}", reachable(gateway.local_addr()));
    let address_file = AddressFile::write(&data_dir, &url)
        .map_err(|error| Failure::new(format!("write {}/gateway.addr", data_dir.display()), error))?;
    let told = if output.is_json() {
        output.document(&serde_json::json!({ "url": url }))
    } else {
        output.line(format!("gateway at {url}"))
    };
    let outcome = match told {
        // Whoever started us may not care to read on; we serve all the same.
        Ok(()) | Err(Failure::OutputClosed) => match interrupts.next().await {
            Interrupt::Keyboard => Err(Failure::Interrupted),
            Interrupt::Terminate | Interrupt::HangUp => Ok(()),
        },
        Err(failure) => Err(failure),
    };
    drop(address_file);
    tokio::select! {
        biased;
        () = gateway.stop() => (),
        _ = interrupts.next() => tracing::warn!("asked twice to end: open requests are cut off"),
    }
    outcome
}

impl GatewayFlags {
    async fn config(self) -> Result<GatewayConfig, Failure> {
        let host = match self.host {
            Some(host) => host,
            None => from_environment("GATEWAY_HOST")?.unwrap_or_else(|| Ipv4Addr::UNSPECIFIED.to_string()),
        };
        let port = match self.port {
            Some(port) => port,
            None => from_environment("GATEWAY_PORT")?.unwrap_or(8080),
        };
        let defaults = GatewayConfig::default();
        let node_timeout = match self.node_timeout {
            Some(seconds) => Some(seconds),
            None => from_environment("GATEWAY_NODE_TIMEOUT")?,
        };
        let data_dir = self
            .data_dir
            .or_else(|| user_data_dir("gateway"))
            .ok_or_else(|| {
                Failure::usage("no --data-dir is given, and the user has no home directory to put one in")
            })?;
        // Settings that only older deployments have had, and only in their environment.
        let seconds = |variable, default| -> Result<Duration, Failure> {
            Ok(from_environment(variable)?.map_or(default, Duration::from_secs))
        };
        Ok(GatewayConfig {
            listen: resolve(&host, port).await?,
            data_dir,
            node_timeout: node_timeout.map_or(defaults.node_timeout, Duration::from_secs),
            no_genesis: self.no_genesis.unwrap_or(false),
            heartbeat_interval: seconds("GATEWAY_HEARTBEAT_INTERVAL", defaults.heartbeat_interval)?,
            cleanup_interval: seconds("GATEWAY_CLEANUP_INTERVAL", defaults.cleanup_interval)?,
            request_timeout: seconds("GATEWAY_REQUEST_TIMEOUT", defaults.request_timeout)?,
            max_connections: from_environment("GATEWAY_MAX_CONNECTIONS")?.unwrap_or(defaults.max_connections),
            ..defaults
        })
    }
}

/// The value of a variable that gateways before ours had.
fn from_environment<T: FromStr>(variable: &str) -> Result<Option<T>, Failure>
where
    T::Err: std::fmt::Display,
{
    let Ok(text) = std::env::var(variable) else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|error| Failure::usage(format!("the variable {variable} is `{text}`: {error}")))
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let doing = || format!("find the address of `{host}`");
    tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| Failure::new(doing(), error).with_hint("give --host an address of this machine"))?
        .next()
        .ok_or_else(|| Failure::new(doing(), "it has none"))
}

/// The address under which this machine reaches what listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// `gateway.addr` in the data directory: what makes port 0 of use to scripts. It goes with the gateway.
#[derive(Debug)]
struct AddressFile {
    path: PathBuf,
}

impl AddressFile {
    fn write(data_dir: &Path, url: &str) -> std::io::Result<Self> {
        let path = data_dir.join("gateway.addr");
        // A reader sees the whole address or none.
        lapwing_durable::write(&path, format!("{url}\n").as_bytes())?;
        Ok(Self { path })
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_means_every_interface_is_told_as_one_that_can_be_dialled() {
        let told = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(told("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(told("[::]:8080"), "[::1]:8080");
        assert_eq!(told("192.0.2.7:8080"), "192.0.2.7:8080");
    }

    #[test]
    fn the_address_file_goes_with_the_gateway() {
        let dir = tempfile::tempdir().unwrap();
        let file = AddressFile::write(dir.path(), "http://127.0.0.1:1").unwrap();
        let path = dir.path().join("gateway.addr");
        assert_eq!(fs::read_to_string(&path).unwrap(), "http://127.0.0.1:1\n");
        drop(file);
        assert!(!path.exists());
    }
}
