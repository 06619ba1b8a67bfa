//! What a relay says of itself, for `lapwing status` and `lapwing peers`: it trains nothing, so that it has no status document as
//! nodes have.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::admin_client::{AdminClient, AdminError};
use super::documents;
use super::failure::Failure;
use super::output::{Align, Output, Table, millis, or_dash};

/// Who the relay is, how it is, and the mains that it knows. The parts are the relay's own documents.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RelayStatus {
    /// As of `/federation/identity`.
    identity: Value,
    /// As of `/federation/health`.
    health: Value,
    /// As of `/federation/peers`.
    peers: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Identity {
    peer_id: String,
    node_address: String,
    node_type: String,
    cluster_id: Option<String>,
    version: String,
    addresses: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Health {
    status: String,
    connected_homes: u64,
    total_services: u64,
    failed_services: u64,
    total_instances: u64,
    average_latency: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Peers {
    peers: Vec<Main>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Main {
    /// `None` while nobody has answered at its URL.
    node_id: Option<String>,
    node_address: Option<String>,
    url: Option<String>,
    error: Option<String>,
    address: Option<String>,
    healthy: bool,
    is_uplink: bool,
    last_seen: Option<String>,
    connected_since: Option<String>,
    rtt_ms: Option<f64>,
    reconnects: u64,
}

impl RelayStatus {
    /// Asks the relay that has answered a question for nodes with `error`; gives that back where it comes from something else.
    ///
    /// # Errors
    /// When it is no relay, or does not answer.
    pub(crate) async fn get(client: &AdminClient, error: AdminError) -> Result<Self, AdminError> {
        if !error.is_missing() {
            return Err(error);
        }
        let Ok(identity) = client.get("/federation/identity").await else {
            return Err(error);
        };
        // One that cannot do its part says so with another status than 200, and the same document.
        let health = client.get_of_any_status("/federation/health").await?;
        let peers = client.get("/federation/peers").await?;
        Ok(Self {
            identity,
            health,
            peers,
        })
    }

    /// Prints how it is. For programs: `{"identity":…, "health":…, "peers":…}`.
    pub(crate) fn print(&self, output: Output) -> Result<(), Failure> {
        if output.is_json() {
            return output.document(self);
        }
        let lines = self.lines();
        output.line(
            lines
                .map_err(|error| Failure::new("read the status", error))?
                .join("\n"),
        )
    }

    /// Prints the mains that it knows. For programs: `{"peers": […]}`.
    pub(crate) fn print_peers(&self, output: Output) -> Result<(), Failure> {
        if output.is_json() {
            return output.document(&json!({ "peers": self.peers["peers"] }));
        }
        let table = self.table();
        output.line(table.map_err(|error| Failure::new("read the peers", error))?)
    }

    fn lines(&self) -> Result<Vec<String>, serde_json::Error> {
        let identity: Identity = documents::read(self.identity.clone())?;
        let health: Health = documents::read(self.health.clone())?;
        let mains: Peers = documents::read(self.peers.clone())?;
        let mut lines = vec![
            format!(
                "relay     {} {}, {}, version {}",
                identity.node_address, health.status, identity.node_type, identity.version
            ),
            format!("          {}", identity.peer_id),
            format!("cluster   {}", or_dash(identity.cluster_id.as_ref())),
            format!(
                "services  {} known with {} instances, {} failed, {} on average",
                health.total_services, health.total_instances, health.failed_services, health.average_latency
            ),
        ];
        if identity.node_type == "main" {
            lines.push(format!("homes     {} connected", health.connected_homes));
        }
        for (index, main) in mains.peers.iter().enumerate() {
            let head = if index == 0 { "mains" } else { "" };
            let rtt = main
                .rtt_ms
                .map_or_else(String::new, |rtt| format!(", {}", millis(rtt)));
            let remark = match (main.is_uplink, identity.node_type.as_str()) {
                (true, "home") => ", takes this home's calls",
                _ => "",
            };
            lines.push(format!("{head:<10}{}: {}{rtt}{remark}", main.name(), main.way()));
        }
        if mains.peers.is_empty() {
            lines.push("mains     no other is known".to_owned());
        }
        for (index, address) in identity.addresses.iter().enumerate() {
            let head = if index == 0 { "listens" } else { "" };
            lines.push(format!("{head:<10}{address}"));
        }
        Ok(lines)
    }

    fn table(&self) -> Result<Table, serde_json::Error> {
        let mains: Peers = documents::read(self.peers.clone())?;
        let mut table = Table::new([
            ("main", Align::Left),
            ("connected", Align::Left),
            ("rtt", Align::Right),
            ("reconnects", Align::Right),
            ("address", Align::Left),
            ("peer", Align::Left),
        ]);
        for main in mains.peers {
            table.row([
                main.name(),
                main.way(),
                or_dash(main.rtt_ms.map(millis)),
                main.reconnects.to_string(),
                or_dash(main.address),
                or_dash(main.node_id),
            ]);
        }
        Ok(table)
    }
}

impl Main {
    /// By which it is called, or else where it is to be.
    fn name(&self) -> String {
        or_dash(self.node_address.as_ref().or(self.url.as_ref()))
    }

    /// Since when it is connected, or when it was heard of last and why it is not.
    fn way(&self) -> String {
        let way = match (self.healthy, &self.connected_since, &self.last_seen) {
            (true, Some(since), _) => format!("since {since}"),
            (true, None, _) => "yes".to_owned(),
            (false, _, Some(last)) => format!("no, last heard {last}"),
            (false, _, None) => "no, never heard".to_owned(),
        };
        match &self.error {
            Some(error) => format!("{way} ({error})"),
            None => way,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node_type: &str, peers: Value) -> RelayStatus {
        RelayStatus {
            identity: json!({"peer_id": "12D3a", "name": "alice", "node_address": "alice.home@relay-a.com", "node_type": node_type,
                             "cluster_id": null, "version": "0.1.0", "addresses": ["/ip4/127.0.0.1/udp/1/quic-v1/p2p/12D3a"]}),
            health: json!({"status": "healthy", "connected_homes": 3, "connected_peers": 1, "total_services": 4,
                           "failed_services": 1, "total_instances": 6, "average_latency": "0.4ms"}),
            peers: json!({ "peers": peers }),
        }
    }

    #[test]
    fn a_relay_is_shown_with_its_services_its_homes_and_the_mains_that_it_knows() {
        let peers = json!([
            {"node_id": "12D3b", "node_address": "relay-b.com.main", "healthy": true, "is_uplink": true, "rtt_ms": 0.31,
             "connected_since": "2026-11-23T06:00:00.000Z"},
            {"node_id": null, "node_address": null, "url": "http://c:1", "healthy": false, "error": "Connection refused"},
        ]);
        let lines = status("home", peers.clone()).lines().unwrap();
        assert_eq!(
            lines,
            [
                "relay     alice.home@relay-a.com healthy, home, version 0.1.0",
                "          12D3a",
                "cluster   -",
                "services  4 known with 6 instances, 1 failed, 0.4ms on average",
                "mains     relay-b.com.main: since 2026-11-23T06:00:00.000Z, 0.3 ms, takes this home's calls",
                "          http://c:1: no, never heard (Connection refused)",
                "listens   /ip4/127.0.0.1/udp/1/quic-v1/p2p/12D3a",
            ]
        );
        let lines = status("main", peers).lines().unwrap();
        assert_eq!(lines[4], "homes     3 connected");
        assert_eq!(
            lines[5],
            "mains     relay-b.com.main: since 2026-11-23T06:00:00.000Z, 0.3 ms"
        );
        let lonely = status("main", json!([])).lines().unwrap();
        assert_eq!(lonely[5], "mains     no other is known");
    }

    #[test]
    fn its_peers_are_the_mains_that_it_knows() {
        let peers = json!([{"node_id": "12D3b", "node_address": "relay-b.com.main", "healthy": false, "reconnects": 2,
                            "address": "/ip4/192.0.2.1/udp/1/quic-v1", "last_seen": "2026-11-23T06:00:00.000Z"}]);
        let table = status("main", peers).table().unwrap().to_string();
        assert_eq!(
            table.lines().nth(1).unwrap(),
            "relay-b.com.main  no, last heard 2026-11-23T06:00:00.000Z    -           2  /ip4/192.0.2.1/udp/1/quic-v1  12D3b"
        );
    }
}
