//! A small cluster on loopback, and waiting for what it should come to.

use lapwing::{Node, NodeConfig, NodeHandle, RateRules};
use lapwing_gateway::{Gateway, GatewayConfig};
use serde_json::Value;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// Patience with one condition: what takes a second on an idle machine may take this on a busy one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway and its nodes. Everything stops and disappears when it is dropped.
pub(crate) struct Cluster {
    pub(crate) gateway: Option<Gateway>,
    pub(crate) gateway_url: String,
    pub(crate) nodes: Vec<Option<NodeHandle>>,
    configs: Vec<NodeConfig>,
    http: reqwest::Client,
    dir: TempDir,
}

impl Cluster {
    /// A gateway without nodes.
    pub(crate) async fn empty() -> Self {
        // `RUST_LOG=debug` tells the story; another test may have asked already.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let config = GatewayConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: dir.path().join("gateway"),
            ..GatewayConfig::default()
        };
        let gateway = Gateway::start(config).await.unwrap();
        let gateway_url = format!("http://{}", gateway.local_addr());
        Self {
            gateway: Some(gateway),
            gateway_url,
            nodes: Vec::new(),
            configs: Vec::new(),
            http: http(),
            dir,
        }
    }

    /// A gateway and `count` nodes that share the digits evenly.
    pub(crate) async fn of(count: usize) -> Self {
        let mut cluster = Self::empty().await;
        for part in 1..=count {
            let data = format!("digits#partition=iid,seed=1,part={part}/{count}");
            cluster.add(|config| config.data = Some(data)).await;
        }
        cluster
    }

    /// Starts one more node and returns its place.
    pub(crate) async fn add(&mut self, change: impl FnOnce(&mut NodeConfig)) -> usize {
        let place = self.nodes.len();
        let mut config = NodeConfig {
            role: None,
            tls: None,
            gateways: vec![self.gateway_url.clone()],
            data_dir: self.data_dir(place),
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
            admin: "127.0.0.1:0".parse().unwrap(),
            name: format!("node-{place}"),
            data: None,
            backend: "plain".to_owned(),
            trainer: None,
            bootstrap: false,
            max_upload: RateRules::default(),
            max_download: RateRules::default(),
            services: Vec::new(),
            policy: lapwing_federation::Policy::default(),
            balancing: lapwing_federation::Balancing::default(),
        };
        change(&mut config);
        self.nodes.push(Some(Node::start(config.clone()).await.unwrap()));
        self.configs.push(config);
        place
    }

    pub(crate) fn data_dir(&self, place: usize) -> PathBuf {
        self.dir.path().join(format!("node-{place}"))
    }

    /// Stops one node in good order.
    pub(crate) async fn stop(&mut self, place: usize) {
        self.nodes[place].take().unwrap().shutdown().await;
    }

    /// Starts a stopped node on its own data directory.
    pub(crate) async fn restart(&mut self, place: usize) {
        self.restart_with(place, |_| ()).await;
    }

    /// The same, with other settings.
    pub(crate) async fn restart_with(&mut self, place: usize, change: impl FnOnce(&mut NodeConfig)) {
        assert!(self.nodes[place].is_none(), "it runs");
        change(&mut self.configs[place]);
        self.nodes[place] = Some(Node::start(self.configs[place].clone()).await.unwrap());
    }

    pub(crate) async fn get(&self, place: usize, path: &str) -> Value {
        let response = self.try_get(place, path).await.unwrap();
        assert!(
            response.status().is_success(),
            "{path}: {}",
            response.text().await.unwrap()
        );
        response.json().await.unwrap()
    }

    pub(crate) async fn try_get(&self, place: usize, path: &str) -> reqwest::Result<reqwest::Response> {
        let addr = self.nodes[place].as_ref().unwrap().admin_addr();
        self.http.get(format!("http://{addr}{path}")).send().await
    }

    pub(crate) async fn post(&self, place: usize, path: &str, body: String) -> reqwest::Response {
        let addr = self.nodes[place].as_ref().unwrap().admin_addr();
        self.http
            .post(format!("http://{addr}{path}"))
            .body(body)
            .send()
            .await
            .unwrap()
    }

    /// Submits a job and returns its id.
    pub(crate) async fn submit(&self, place: usize, toml: &str) -> String {
        let response = self.post(place, "/v1/jobs", toml.to_owned()).await;
        let status = response.status();
        let document: Value = response.json().await.unwrap();
        assert!(status.is_success(), "{document}");
        document["id"].as_str().unwrap().to_owned()
    }

    /// Waits until every running node sees `count` active members and `voters` of them voting.
    pub(crate) async fn formed(&self, count: usize, voters: usize) {
        for place in 0..self.nodes.len() {
            if self.nodes[place].is_none() {
                continue;
            }
            wait_for(
                &format!("{count} members and {voters} voters at node {place}"),
                async || {
                    let Ok(response) = self.try_get(place, "/v1/members").await else {
                        return Err("no answer".into());
                    };
                    let members: Value = response.json().await.unwrap();
                    let list = members["members"].as_array().cloned().unwrap_or_default();
                    let active = list.iter().filter(|member| member["state"] == "active").count();
                    let voting = list.iter().filter(|member| member["voter"] == true).count();
                    if (active, voting) == (count, voters) {
                        Ok(())
                    } else {
                        Err(members.to_string())
                    }
                },
            )
            .await;
        }
    }

    /// Waits until a job has ended, and returns its document.
    pub(crate) async fn finished(&self, place: usize, job: &str) -> Value {
        wait_for(&format!("the end of {job}"), async || {
            let answer = self.try_get(place, &format!("/v1/jobs/{job}")).await.unwrap();
            let document: Value = answer.json().await.unwrap();
            if document["phase"] == "finished" {
                Ok(document)
            } else {
                Err(short(&document))
            }
        })
        .await
    }
}

fn short(document: &Value) -> String {
    format!(
        "phase {}, round {}, last {}",
        document["phase"],
        document["round"],
        document["history"]
            .as_array()
            .and_then(|rounds| rounds.last())
            .unwrap_or(&Value::Null)
    )
}

pub(crate) fn http() -> reqwest::Client {
    // Another test may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap()
}

/// Asks again and again until the answer is `Ok`; fails with the last `Err` after [`PATIENCE`].
pub(crate) async fn wait_for<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    let mut last = String::new();
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            interval.tick().await;
            match probe().await {
                Ok(value) => return value,
                Err(state) => last = state,
            }
        }
    })
    .await;
    waited.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {what}; last seen: {last}"))
}
