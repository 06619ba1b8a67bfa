//! Services that are child processes.

use std::sync::Arc;

use lapwing_federation::{ChildBackend, ErrorCode};

use crate::nodes::{Houses, PATIENCE, call};

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
    let answer = houses.alice.call(call("math", "same", "[3]")).await;
    assert_eq!(answer.outcome, Ok("[3]".to_owned()));
    houses.stop().await;
    child.shutdown().await;
}
