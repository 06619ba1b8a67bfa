//! Which instance is called, where a call wants a version or what a service works on.

use std::collections::BTreeSet;
use std::sync::Arc;

use lapwing_federation::{Call, CallAnswer, ErrorCode, Methods, Service};

use crate::nodes::{Houses, Node, call};

/// Answers with the name of its node.
fn offer(node: &Node, name: &str, version: &str, resources: &[&str]) {
    let methods = Methods::new().method("who", {
        let name = node.name;
        move |()| async move { Ok(name) }
    });
    let mut service = Service::new(name.parse().unwrap());
    service.version = version.parse().unwrap();
    service.methods = methods.names();
    service.resources = texts(resources);
    node.federation.offer(service, Arc::new(methods)).unwrap();
}

fn texts(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

fn who(answer: CallAnswer) -> Result<String, ErrorCode> {
    let text = answer.outcome.map_err(|failure| failure.code)?;
    Ok(serde_json::from_str(&text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_that_work_on_different_models_are_each_found_where_their_model_is() {
    let houses = Houses::start().await;
    offer(&houses.bob, "process_a", "1.0.0", &["model-a"]);
    offer(&houses.carol, "process_b", "1.0.0", &["model-b"]);
    // The same name with another model, and one with both.
    offer(&houses.carol, "process_a", "1.0.0", &["model-b"]);
    offer(&houses.main_b, "process_a", "1.0.0", &["model-a", "model-c"]);
    houses.until_known("process_a", 4).await;
    houses.until_known("process_b", 2).await;
    let ask = async |service, resources: &[&str]| {
        let call = Call {
            resources: texts(resources),
            ..call(service, "who", "[]")
        };
        who(houses.alice.call(call).await)
    };
    for _ in 0..3 {
        assert_eq!(
            ask("process_a", &["model-a"]).await,
            Ok("bob".to_owned()),
            "exactly these"
        );
        assert_eq!(ask("process_a", &["model-b"]).await, Ok("carol".to_owned()));
        assert_eq!(
            ask("process_a", &["model-c"]).await,
            Ok("main-b".to_owned()),
            "and more"
        );
        assert_eq!(ask("process_b", &["model-b"]).await, Ok("carol".to_owned()));
        assert!(ask("process_a", &[]).await.is_ok(), "any will do");
    }
    assert_eq!(
        ask("process_b", &["model-a"]).await,
        Err(ErrorCode::ServiceNotFound)
    );
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_to_an_instance_of_a_version_that_will_do_or_says_that_there_is_none() {
    let houses = Houses::start().await;
    offer(&houses.bob, "store", "1.4.2", &[]);
    offer(&houses.carol, "store", "2.0.1", &[]);
    houses.until_known("store", 3).await;
    let ask = async |versions: &str| {
        let call = Call {
            versions: versions.parse().unwrap(),
            ..call("store", "who", "[]")
        };
        who(houses.alice.call(call).await)
    };
    for _ in 0..3 {
        assert_eq!(ask(">=1.0,<2").await, Ok("bob".to_owned()));
        assert_eq!(ask("==2.0.1").await, Ok("carol".to_owned()));
    }
    assert_eq!(ask(">=3").await, Err(ErrorCode::VersionUnsatisfied));
    houses.stop().await;
}
