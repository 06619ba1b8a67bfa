//! Starting, refusing to start, and what an operator sees.

use lapwing_gateway::{Gateway, GatewayConfig, StartError};

use crate::support::{Http, config, start};

#[tokio::test]
async fn an_address_in_use_is_named() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let gateway = start(first.path()).await;
    let taken = GatewayConfig {
        listen: gateway.local_addr(),
        ..config(second.path())
    };
    let error = Gateway::start(taken).await.unwrap_err();
    assert!(matches!(error, StartError::AddressInUse { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&gateway.local_addr().to_string()) && text.contains("--port"),
        "{text}"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_data_directory_serves_one_gateway_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let error = Gateway::start(config(dir.path())).await.unwrap_err();
    assert!(matches!(error, StartError::Locked { .. }), "{error}");
    gateway.stop().await;
    start(dir.path()).await.stop().await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = Gateway::start(config(&file.join("sub"))).await.unwrap_err();
    assert!(matches!(error, StartError::DataDir { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    start(dir.path()).await.stop().await;
    let path = dir.path().join("gateway.redb");
    let whole = std::fs::read(&path).unwrap();
    let garbage = vec![0x5a; 8192];
    let mut flipped = whole.clone();
    flipped[..4096].fill(0xff);
    for damaged in [garbage, whole[..whole.len() / 2].to_vec(), flipped] {
        std::fs::write(&path, &damaged).unwrap();
        let error = Gateway::start(config(dir.path())).await.unwrap_err();
        assert!(matches!(error, StartError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("gateway.redb") || error.to_string().contains("--no-genesis"));
    }
}

#[tokio::test]
async fn a_setting_of_zero_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = GatewayConfig {
        max_connections: 0,
        ..config(dir.path())
    };
    let error = Gateway::start(wrong).await.unwrap_err();
    assert!(error.to_string().contains("max_connections"));
}

#[tokio::test]
async fn an_operator_can_ask_whether_it_lives_is_ready_and_how_it_fares() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    for path in ["/live", "/ready"] {
        let response = http.request("GET", path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    let page = http.request("GET", "/metrics").send().await.unwrap();
    assert!(
        page.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    let page = page.text().await.unwrap();
    assert!(page.ends_with('\n'));
    let mut described = std::collections::BTreeSet::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(described.insert(name.to_owned()) && text.ends_with('.'), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = name.split('{').next().unwrap();
            assert!(described.contains(name), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn stopping_ends_long_polls_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    let (_, page) = http.get("/v1/nodes").await;
    let path = format!("/v1/nodes?since={}&wait=50s", page["version"]);
    let stop = async {
        // The poll was sent first, so it is in flight once later requests have been answered.
        for _ in 0..3 {
            Http::new(gateway.local_addr()).get("/live").await;
        }
        gateway.stop().await;
    };
    let (polled, ()) = tokio::join!(http.get(&path), stop);
    assert_eq!(polled.0, 200);
}
