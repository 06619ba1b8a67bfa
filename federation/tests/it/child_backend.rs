//! Services that are child processes.

use std::sync::Arc;

use lapwing_federation::{ChildBackend, Echo, ErrorCode};

use crate::nodes::{Houses, PATIENCE, call, eventually};

/// Answers the arguments, and ends where it is told to.
const COMMAND: &str = r#"
    while read -r line; do
        id=${line#*\"id\":}; id=${id%%,*}
        params=${line#*\"params\":}; params=${params%\}}
        case "$line" in *'"method":"end"'*) exit 1;; esac
        echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":$params}"
    done
    "#;

#[tokio::test(flavor = "multi_thread")]
async fn a_home_calls_a_process_of_another_home_before_and_after_its_end() {
    let houses = Houses::start().await;
    let child = ChildBackend::start("math".parse().unwrap(), COMMAND).unwrap();
    let child = Arc::new(child);
    houses.bob.offer("math", child.clone());
    houses.until_known("math", 2).await;
    let answer = houses.alice.call(call("math", "same", "[1.10, {}]")).await;
    assert_eq!(answer.outcome, Ok("[1.10, {}]".to_owned()));
    let failure = houses.alice.call(call("math", "end", "[]")).await;
    let failure = failure.outcome.unwrap_err();
    assert_eq!(
        (failure.code, failure.failed_at),
        (ErrorCode::RemoteError, houses.bob.id())
    );
    assert!(failure.remote.is_some_and(|remote| remote.fault));
    // Asked of Bob, who does not choose among instances, and has no breaker for it.
    let comes_back = async {
        loop {
            let mut again = call("math", "same", "[2]");
            again.target = Some(houses.bob.id());
            match houses.bob.call(again).await.outcome {
                Ok(result) => break result,
                Err(failure) => assert_eq!(failure.code, ErrorCode::PeerUnreachable),
            }
            tokio::task::yield_now().await;
        }
    };
    let comes_back = tokio::time::timeout(PATIENCE, comes_back).await;
    assert_eq!(comes_back.as_deref(), Ok("[2]"));
    eventually("alice's main knows that it is back", || {
        houses.main_a.offers("math")[0].service.is_healthy
    })
    .await;
    let answer = houses.alice.call(call("math", "same", "[3]")).await;
    assert_eq!(answer.outcome, Ok("[3]".to_owned()));
    houses.stop().await;
    child.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_not_running_is_called_nowhere_and_its_calls_are_made_at_other_instances() {
    let houses = Houses::start().await;
    let child = ChildBackend::start("math".parse().unwrap(), COMMAND).unwrap();
    let child = Arc::new(child);
    houses.carol.offer("math", child.clone());
    houses.bob.offer("math", Arc::new(Echo));
    let is_well_known = |is_healthy: bool| {
        let known = houses.main_a.offers("math");
        let of_carol = known.iter().find(|one| one.origin == houses.carol.id());
        known.len() == 2 && of_carol.is_some_and(|one| one.service.is_healthy == is_healthy)
    };
    eventually("main-a knows both", || is_well_known(true)).await;
    // It is started no more, so that it stays away.
    child.shutdown().await;
    eventually("main-a knows that carol's is away", || is_well_known(false)).await;
    for number in 0..10 {
        let answer = houses
            .alice
            .call(call("math", "echo", &format!("[{number}]")))
            .await;
        assert_eq!(
            answer.outcome,
            Ok(number.to_string()),
            "of bob, not the nearer one"
        );
    }
    assert!(houses.bob.withdraw("math"));
    eventually("bob's is gone", || houses.main_a.offers("math").len() == 1).await;
    let failure = houses.alice.call(call("math", "echo", "[1]")).await;
    let failure = failure.outcome.unwrap_err();
    assert_eq!(
        (failure.code, failure.failed_at),
        (ErrorCode::NoHealthyInstance, houses.main_a.id())
    );
    // What takes its place is another one, and well.
    assert!(houses.carol.withdraw("math"));
    houses.carol.offer("math", Arc::new(Echo));
    eventually("carol offers another", || {
        let known = houses.main_a.offers("math");
        known.len() == 1 && known[0].service.is_healthy
    })
    .await;
    let answer = houses.alice.call(call("math", "echo", "[1]")).await;
    assert_eq!(answer.outcome, Ok("1".to_owned()));
    houses.stop().await;
}
