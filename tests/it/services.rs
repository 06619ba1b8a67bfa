//! Members of a cluster call each other's services.

use crate::support::{Cluster, wait_for};
use lapwing_base::Role;
use serde_json::{Value, json};

/// A main and two homes, of which the first offers a service to everybody and one to itself.
async fn house() -> Cluster {
    let mut cluster = Cluster::empty().await;
    cluster
        .add(|config| {
            config.role = Some(Role::Main);
            config.name = "main-a".to_owned();
        })
        .await;
    cluster
        .add(|config| {
            config.role = Some(Role::Home);
            config.name = "alice".to_owned();
            let mut diary: lapwing::ServiceSpec = "diary=echo:".parse().unwrap();
            diary.exposure.is_private = true;
            config.services = vec!["blog@1.2.0#de=echo:".parse().unwrap(), diary];
        })
        .await;
    cluster
        .add(|config| {
            config.role = Some(Role::Home);
            config.name = "bob".to_owned();
        })
        .await;
    cluster.formed(3, 3).await;
    cluster
}

async fn call(cluster: &Cluster, place: usize, params: Value) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": params });
    cluster
        .post(place, "/rpc", body.to_string())
        .await
        .json()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_behind_a_main_calls_the_service_of_another_by_its_admin_address() {
    let cluster = house().await;
    let params = json!({
        "node_id": "alice.home@main-a", "service_name": "blog", "method": "echo", "args": ["hello"], "trace": true,
    });
    wait_for("an answer over two links", async || {
        let answer = call(&cluster, 2, params.clone()).await;
        match &answer["result"] {
            Value::String(said) if said == "hello" && answer["trace"]["hops"] == 2 => Ok(()),
            _ => Err(answer.to_string()),
        }
    })
    .await;
    let private = call(
        &cluster,
        2,
        json!({ "node_id": "alice", "service_name": "diary", "method": "echo" }),
    )
    .await;
    assert_eq!(private["error"]["data"]["name"], "service_not_found", "{private}");
    let own = call(
        &cluster,
        1,
        json!({ "service_name": "diary", "method": "echo", "args": [1] }),
    )
    .await;
    assert_eq!(own["result"], 1, "{own}");
    let status = cluster.get(0, "/v1/status").await;
    let blog = json!({ "name": "blog", "version": "1.2.0", "instances": 1, "local": false });
    assert!(
        status["services"].as_array().unwrap().contains(&blog),
        "{}",
        status["services"]
    );
    let listed = cluster.get(2, "/federation/services").await.to_string();
    assert!(
        listed.contains("alice.home@main-a") && !listed.contains("diary"),
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_of_a_node_that_stops_are_gone_and_come_back_with_it() {
    let mut cluster = house().await;
    let params = json!({ "service_name": "blog", "method": "echo", "args": ["hello"] });
    for is_there in [true, false, true] {
        wait_for("the service to be there or not", async || {
            let answer = call(&cluster, 2, params.clone()).await;
            let is_gone = answer["error"]["data"]["name"] == "service_not_found";
            if (answer["result"] == "hello") == is_there && is_gone != is_there {
                Ok(())
            } else {
                Err(answer.to_string())
            }
        })
        .await;
        if is_there && cluster.nodes[1].is_some() {
            cluster.stop(1).await;
        } else {
            cluster.restart(1).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser_calls_nothing_through_the_admin_address() {
    let cluster = house().await;
    let addr = cluster.nodes[1].as_ref().unwrap().admin_addr();
    let request = reqwest::Client::new()
        .post(format!("http://{addr}/rpc"))
        .header("Origin", "https://example.org")
        .body(r#"{"jsonrpc":"2.0","id":1,"method":"diary.echo","params":[1]}"#);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 403);
}
