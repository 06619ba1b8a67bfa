//! What bad input gets: one error that names the thing and what to do, and nothing else disturbed.

use crate::support::{Cluster, PATIENCE, wait_for};
use lapwing::{DataDirError, Node, NodeConfig, RateRules, StartError};
use lapwing_base::chain;
use std::path::Path;
use std::process::{Output, Stdio};
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_is_named_before_the_node_is_heard_of() {
    let dir = tempfile::tempdir().unwrap();
    let refused = async |change: fn(&mut NodeConfig)| {
        let mut config = alone(&dir.path().join("node"));
        change(&mut config);
        let error = Node::start(config).await.unwrap_err();
        let text = chain(&error);
        (error, text)
    };
    let (error, text) = refused(|config| {
        config.gateways = vec!["nonsense".to_owned()];
        config.bootstrap = false;
    })
    .await;
    assert!(matches!(error, StartError::Gateway(_)), "{text}");
    assert!(
        text.contains("`nonsense` is not the address of a gateway"),
        "{text}"
    );
    let (error, text) = refused(|config| config.data = Some("digts".to_owned())).await;
    assert!(matches!(error, StartError::Data { .. }), "{text}");
    assert!(text.contains("did you mean `digits`?"), "{text}");
    let (error, text) = refused(|config| config.backend = "tch".to_owned()).await;
    assert!(matches!(error, StartError::Backend(_)), "{text}");
    let (error, text) = refused(|config| config.name = "n".repeat(65)).await;
    assert!(matches!(error, StartError::Name(65)), "{text}");
    let (error, text) = refused(|config| config.gateways = vec!["http://127.0.0.1:1".to_owned()]).await;
    assert!(matches!(error, StartError::BootstrapBesideGateway), "{text}");
    let (error, text) = refused(|config| config.bootstrap = false).await;
    assert!(matches!(error, StartError::NobodyToAsk), "{text}");
    assert!(text.contains("--gateway"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_are_missing_or_cut_are_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("cut.csv");
    std::fs::write(&table, "1,2,0\n3,4").unwrap();
    let images = dir.path().join("idx/train-images-idx3-ubyte");
    std::fs::create_dir(dir.path().join("idx")).unwrap();
    std::fs::write(
        &images,
        [0, 0, 8, 3, 0, 0, 0, 16, 0, 0, 0, 28, 0, 0, 0, 28, 1, 2, 3],
    )
    .unwrap();
    for rest in [
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ] {
        std::fs::write(dir.path().join("idx").join(rest), []).unwrap();
    }
    for (data, told) in [
        ("csv:/nowhere.csv".to_owned(), "failed to open `/nowhere.csv`"),
        (
            format!("csv:{}", table.display()),
            "line 2 has 2 columns where 3 were expected",
        ),
        (
            "idx:/nowhere".to_owned(),
            "`/nowhere` has neither `train-images-idx3-ubyte`",
        ),
        (
            format!("idx:{}", dir.path().join("idx").display()),
            "copy or download it again",
        ),
    ] {
        let mut config = alone(&dir.path().join("node"));
        config.data = Some(data.clone());
        let error = Node::start(config).await.unwrap_err();
        let text = chain(&error);
        assert!(matches!(error, StartError::Samples { .. }), "{text}");
        assert!(text.contains(&data) && text.contains(told), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_and_directories_in_use_are_named_and_left_to_their_owner() {
    let dir = tempfile::tempdir().unwrap();
    let first_dir = dir.path().join("first");
    let first = Node::start(alone(&first_dir)).await.unwrap();

    let error = Node::start(alone(&first_dir)).await.unwrap_err();
    assert!(
        matches!(&error, StartError::DataDir(DataDirError::InUse { dir }) if *dir == first_dir),
        "{error}"
    );

    let mut same_admin = alone(&dir.path().join("second"));
    same_admin.admin = first.admin_addr();
    let error = Node::start(same_admin).await.unwrap_err();
    assert!(
        matches!(&error, StartError::Admin { addr, .. } if *addr == first.admin_addr()),
        "{error}"
    );

    let mut same_port = alone(&dir.path().join("third"));
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    same_port.listen = vec![format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap()];
    let error = Node::start(same_port).await.unwrap_err();
    let text = chain(&error);
    assert!(matches!(error, StartError::Network(_)), "{text}");
    assert!(
        text.contains(&format!("/udp/{port}/")) && text.contains("in use"),
        "{text}"
    );

    // Nothing of this has disturbed the first.
    let answer = std::net::TcpStream::connect(first.admin_addr());
    assert!(answer.is_ok());
    first.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_another_nodes_key_or_a_damaged_file_is_refused_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, other) = (dir.path().join("mine"), dir.path().join("other"));
    founded(&mine).await;
    founded(&other).await;

    let key = std::fs::read(mine.join("identity.key")).unwrap();
    std::fs::copy(other.join("identity.key"), mine.join("identity.key")).unwrap();
    let error = Node::start(alone(&mine)).await.unwrap_err();
    assert!(
        matches!(&error, StartError::AnotherNode { dir, ours, theirs } if *dir == mine && ours != theirs),
        "{error}"
    );
    assert!(error.to_string().contains("restore the right key"), "{error}");

    std::fs::write(mine.join("identity.key"), "garbage").unwrap();
    let error = Node::start(alone(&mine)).await.unwrap_err();
    assert!(matches!(error, StartError::Identity(_)), "{error}");
    assert!(chain(&error).contains("identity.key is damaged"), "{error}");
    std::fs::write(mine.join("identity.key"), key).unwrap();

    let log = mine.join("raft/log.redb");
    let whole = std::fs::read(&log).unwrap();
    let mut damaged = whole.clone();
    // The file's first bytes, which say what it is.
    damaged[..8].fill(0x5a);
    for bytes in [&damaged[..], &whole[..whole.len() / 2], &[]] {
        std::fs::write(&log, bytes).unwrap();
        let error = Node::start(alone(&mine)).await.unwrap_err();
        let text = chain(&error);
        assert!(matches!(error, StartError::Log(_)), "{text}");
        assert!(
            text.contains("log.redb is corrupt") && text.contains("start again"),
            "{text}"
        );
        assert_eq!(
            std::fs::read(&log).unwrap(),
            bytes,
            "what is damaged is left for a person"
        );
    }

    // As it was, it serves again.
    std::fs::write(&log, whole).unwrap();
    founded(&mine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_count_of_starts_is_mended_as_the_error_says() {
    let dir = tempfile::tempdir().unwrap();
    for damaged in ["many", "", "18446744073709551615"] {
        std::fs::write(dir.path().join("incarnation"), damaged).unwrap();
        let mut config = alone(dir.path());
        config.gateways = vec!["http://127.0.0.1:1".to_owned()];
        config.bootstrap = false;
        let error = Node::start(config.clone()).await.unwrap_err();
        assert!(
            matches!(error, StartError::DataDir(DataDirError::Corrupt { .. })),
            "{error}"
        );
        assert!(error.to_string().contains("such as 1000000"), "{error}");
        std::fs::write(dir.path().join("incarnation"), "1000000").unwrap();
        Node::start(config).await.unwrap().shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_gateway_is_waited_for_with_a_word_on_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = alone(dir.path());
    config.gateways = vec!["http://127.0.0.1:1".to_owned()];
    config.bootstrap = false;
    let node = Node::start(config).await.unwrap();
    let reason = wait_for("the reason", async || {
        node.status().node.reason.ok_or_else(|| "none".to_owned())
    })
    .await;
    assert!(
        reason.contains("http://127.0.0.1:1/") && reason.contains("--gateway"),
        "{reason}"
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_asks_another_clusters_gateway_stays_in_its_own() {
    let mut ours = Cluster::of(2).await;
    ours.formed(2, 2).await;
    let theirs = Cluster::of(1).await;
    theirs.formed(1, 1).await;
    let cluster = ours.get(1, "/v1/members").await["cluster_id"].clone();

    ours.stop(1).await;
    let elsewhere = theirs.gateway_url.clone();
    ours.restart_with(1, |config| config.gateways = vec![elsewhere])
        .await;
    ours.formed(2, 2).await;
    assert_eq!(ours.get(1, "/v1/members").await["cluster_id"], cluster);
    theirs.formed(1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_is_not_made_to_lead_and_the_leader_stays() {
    let cluster = Cluster::of(4).await;
    cluster.formed(4, 3).await;
    let before = cluster.get(0, "/v1/members").await;
    let members = before["members"].as_array().unwrap();
    let learner = members.iter().find(|member| member["voter"] == false).unwrap();
    let path = format!("/v1/leader/{}", learner["id"].as_str().unwrap());
    let answer = cluster.post(0, &path, String::new()).await;
    assert_eq!(answer.status(), 409);
    let text = answer.text().await.unwrap();
    assert!(text.contains("does not vote"), "{text}");
    let after = cluster.get(0, "/v1/members").await;
    assert_eq!(
        (&after["leader"], &after["term"]),
        (&before["leader"], &before["term"])
    );

    let voter = members
        .iter()
        .find(|member| member["voter"] == true && member["id"] != before["leader"])
        .unwrap();
    let path = format!("/v1/leader/{}", voter["id"].as_str().unwrap());
    let answer = cluster.post(0, &path, String::new()).await;
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    assert_eq!(cluster.get(0, "/v1/members").await["leader"], voter["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_model_is_not_handed_out() {
    let cluster = Cluster::of(2).await;
    cluster.formed(2, 2).await;
    let job = cluster
        .submit(0, "rounds = 3\nlocal_steps = 1\nfinal_dense_rounds = 1")
        .await;
    cluster.finished(0, &job).await;
    let path = format!("/v1/jobs/{job}/model");
    for place in [0, 1] {
        assert!(cluster.try_get(place, &path).await.unwrap().status().is_success());
    }
    let file = cluster.data_dir(0).join(format!("train/{job}.safetensors"));
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let answer = cluster.try_get(0, &path).await.unwrap();
    assert_eq!(answer.status(), 500);
    let text = answer.text().await.unwrap();
    assert!(
        text.contains("is damaged") && text.contains("another of its holders"),
        "{text}"
    );
    assert!(cluster.try_get(1, &path).await.unwrap().status().is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_job_is_refused_by_name_and_the_next_one_taken() {
    let cluster = Cluster::of(1).await;
    cluster.formed(1, 1).await;
    let addr = cluster.nodes[0].as_ref().unwrap().admin_addr().to_string();
    let dir = tempfile::tempdir().unwrap();
    for (text, told) in [
        (
            &b"ronds = 3\n"[..],
            "line 1: unknown key `ronds`; did you mean `rounds`?",
        ),
        (
            b"rounds = -3\n",
            "`rounds` must be a whole number from 1 to 1000000, not -3",
        ),
        (b"rounds = 3\nrounds = 4\n", "line 2: duplicate key"),
        (b"\xff\xfe\x00\x80", "it is no text"),
    ] {
        let file = dir.path().join("job.toml");
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        expect(
            &run(&dir, &["job", "submit", &file, "--admin", &addr]).await,
            1,
            told,
        );
    }
    expect(
        &run(&dir, &["job", "submit", "/dev/zero", "--admin", &addr]).await,
        1,
        "more than the 64.0 KiB that a job file may have",
    );
    expect(
        &run(&dir, &["job", "show", "7", "--admin", &addr]).await,
        1,
        "there is no job `job-7`",
    );
    cluster
        .submit(0, "rounds = 2\nlocal_steps = 1\nfinal_dense_rounds = 1")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_status_tells_wrong_usage_from_failure() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("node").display().to_string();
    let node = async |args: &[&str]| run(&dir, &[&["node", "--data-dir", &data_dir], args].concat()).await;
    for (args, told) in [
        (
            &["--gateway", "nonsense"][..],
            "`nonsense` is not the address of a gateway",
        ),
        (&["--data", "digts"], "did you mean `digits`?"),
        (&["--backend", "torch"], "there is no backend `torch`"),
        (&["--listen", "here"], "--listen"),
        (&["--admin", "here"], "--admin"),
        (&["--max-upload", "fast"], "`fast` is not a rate"),
        (&["--name", ""], "a name has 1 to 64 bytes"),
        (&["--unknown"], "--unknown"),
        // Neither a member already, nor a way to become one.
        (&[], "give it a --gateway to ask"),
        (
            &["--bootstrap", "--gateway", "http://127.0.0.1:1"],
            "--bootstrap founds a cluster",
        ),
    ] {
        expect(&node(args).await, 2, told);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let admin = format!("127.0.0.1:{port}");
    expect(&node(&["--bootstrap", "--admin", &admin]).await, 1, &admin);
    expect(
        &node(&["--bootstrap", "--data", "csv:/nowhere.csv"]).await,
        1,
        "failed to open `/nowhere.csv`",
    );
    let demo = ["demo", "--report", "/nowhere/report.html"];
    expect(&run(&dir, &demo).await, 1, "its folder does not exist");
    let gateway_dir = dir.path().join("gateway").display().to_string();
    let gateway = [
        "gateway",
        "--host",
        "127.0.0.1",
        "--port",
        &port,
        "--data-dir",
        &gateway_dir,
    ];
    expect(&run(&dir, &gateway).await, 1, "choose another port with --port");
    expect(
        &run(&dir, &["status", "--data-dir", &data_dir]).await,
        1,
        "start it with `lapwing node",
    );
}

/// A node by itself, that founds its own cluster.
fn alone(data_dir: &Path) -> NodeConfig {
    NodeConfig {
        role: None,
        tls: None,
        gateways: Vec::new(),
        data_dir: data_dir.to_owned(),
        listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
        admin: "127.0.0.1:0".parse().unwrap(),
        name: "alone".to_owned(),
        data: None,
        backend: "plain".to_owned(),
        trainer: None,
        bootstrap: true,
        max_upload: RateRules::default(),
        max_download: RateRules::default(),
        services: Vec::new(),
        policy: lapwing_federation::Policy::default(),
        balancing: lapwing_federation::Balancing::default(),
    }
}

/// Runs a node by itself until it is a member, and stops it.
async fn founded(data_dir: &Path) {
    let node = Node::start(alone(data_dir)).await.unwrap();
    wait_for("a cluster of one", async || {
        node.status()
            .cluster_id
            .map(drop)
            .ok_or_else(|| "none".to_owned())
    })
    .await;
    node.shutdown().await;
}

/// Runs a command that is expected to end by itself.
async fn run(home: &TempDir, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_lapwing"));
    command
        .args(args)
        .env("HOME", home.path())
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("XDG_STATE_HOME")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("lapwing {} does not end", args.join(" ")))
        .unwrap()
}

/// One error on standard error that says this, nothing on standard output, and this exit status.
#[track_caller]
fn expect(output: &Output, status: i32, told: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(
        text.matches(told).count(),
        1,
        "`{told}` is not told once in: {text}"
    );
}
