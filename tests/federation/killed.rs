//! Mains that are killed while calls are under way.

use std::time::{Duration, Instant};

use futures::join;
use serde_json::json;

use crate::backend::Backend;
use crate::calls::{Done, tally};
use crate::world::{World, eventually, free_port};

const CALLS: u64 = 1_000;
const AT_A_TIME: usize = 50;

/// Of the calls of the last ten seconds a tenth may be tried again. So few are under way that this is enough for all, also for
/// those that go by the third main then, which misses the second a moment later than the first does.
const FEW_AT_A_TIME: usize = 20;

/// How long what is under way takes, so that there is some when a main is killed.
const DELAY: Duration = Duration::from_millis(20);

/// How long whoever calls waits, and so the longest that a call may take that nobody gives up for it.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A main that is killed says nothing, and is noticed by its silence within a few seconds; the rest is for a busy machine.
const NOTICED: Duration = Duration::from_secs(10);

/// A main that is back serves within a second or two; a breaker would be open for 15 s at least.
const BACK: Duration = Duration::from_secs(10);

/// Errors that say that a node on the way is gone: what is called may be somewhere else, or there in a moment.
const GONE: [&str; 6] = [
    "peer_unreachable",
    "node_offline",
    "node_not_found",
    "service_not_found",
    "circuit_open",
    "no_healthy_instance",
];

#[derive(Debug)]
struct Story {
    done: Vec<Done>,
    killed_at: Instant,
}

impl Story {
    /// Calls while a main is killed, after two thirds of them.
    async fn tell(
        world: &mut World,
        at: &str,
        victim: &str,
        backends: &[&Backend],
        at_a_time: usize,
        is_idempotent: bool,
    ) -> Self {
        let edge = world.edge(at);
        let before: u64 = backends.iter().map(|backend| backend.calls()).sum();
        let more = json!({ "timeout": TIMEOUT.as_secs(), "idempotent": is_idempotent });
        let calling = edge.numbers("diary", 0..CALLS, at_a_time, more);
        let killing = async {
            eventually("two thirds of the calls to be carried out", async || {
                let calls = backends.iter().map(|backend| backend.calls()).sum::<u64>() - before;
                if calls >= CALLS * 2 / 3 {
                    Ok(())
                } else {
                    Err(calls.to_string())
                }
            })
            .await;
            world.kill(victim);
            Instant::now()
        };
        let (done, killed_at) = join!(calling, killing);
        let story = Self { done, killed_at };
        println!("{victim} is killed under calls at {at}: {:?}", tally(&story.done));
        story
    }

    fn failed(&self) -> impl Iterator<Item = &Done> {
        self.done.iter().filter(|done| !done.ended.is_ok())
    }

    /// Nobody is left without an answer, and errors say what is the matter, promptly.
    fn all_are_answered(&self) {
        assert_eq!(self.done.len() as u64, CALLS);
        let mut slowest = Duration::ZERO;
        for done in self.failed() {
            assert!(GONE.contains(&done.ended.name()), "{done:?}");
            let since = (done.begun + done.took).saturating_duration_since(self.killed_at.max(done.begun));
            slowest = slowest.max(since);
        }
        println!("  the last to hear of it waited {slowest:.2?}");
        assert!(slowest < NOTICED, "an error came {slowest:?} after the loss");
    }
}

/// Three mains, alice at the first; the diary is at bob, whose main is the second, and where it is asked at carol, whose main
/// is the third.
async fn three(has_carol: bool) -> (World, Vec<Backend>, [u16; 3]) {
    let mut world = World::new();
    let ports = [(); 3].map(|()| free_port());
    let [a, b, c] = ports;
    world.main("relay-a", a, &[b, c], &[]);
    world.main("relay-b", b, &[a, c], &[]);
    world.main("relay-c", c, &[a, b], &[]);
    world.home("alice", &[a, c], &[]);
    let mut backends = Vec::new();
    let homes = [("bob", b), ("carol", c)];
    for (name, main) in homes.into_iter().take(1 + usize::from(has_carol)) {
        let backend = Backend::start(name);
        backend.take(DELAY);
        world.home(name, &[main], &[&backend.as_service("diary")]);
        backends.push(backend);
    }
    world.up().await;
    let names: Vec<&str> = homes.iter().take(backends.len()).map(|(name, _)| *name).collect();
    for main in ["relay-a", "relay-c"] {
        world.until_offered(main, "diary", &names).await;
    }
    world.until_offered("alice", "diary", &names).await;
    (world, backends, ports)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_that_is_killed_under_a_thousand_calls_leaves_none_unanswered_and_serves_again_when_it_is_back()
 {
    let (mut world, backends, _) = three(false).await;
    let backends: Vec<&Backend> = backends.iter().collect();
    let story = Story::tell(&mut world, "alice", "relay-b", &backends, AT_A_TIME, false).await;
    story.all_are_answered();
    assert!(story.failed().count() > 0, "nobody else has the service");
    let twice = backends[0]
        .carried_out()
        .into_iter()
        .find(|(_, times)| *times > 1);
    assert_eq!(twice, None, "what may not be carried out twice was not");

    let edge = world.edge("alice");
    let begun = Instant::now();
    world.launch("relay-b");
    let back = eventually("the service to be back", async || {
        let done = edge.number("diary", CALLS, &json!({ "timeout": 5 })).await;
        if done.ended.is_ok() {
            Ok(begun.elapsed())
        } else {
            Err(format!("{:?}", done.ended))
        }
    })
    .await;
    println!("the main was started again: its home is called after {back:.2?}");
    assert!(
        back < BACK,
        "no breaker is open for what was not the service's fault: {back:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_may_be_carried_out_twice_go_to_another_instance_when_a_main_is_killed_under_them() {
    let (mut world, backends, _) = three(true).await;
    let backends: Vec<&Backend> = backends.iter().collect();
    let story = Story::tell(&mut world, "alice", "relay-b", &backends, FEW_AT_A_TIME, true).await;
    story.all_are_answered();
    let failed: Vec<&Done> = story.failed().collect();
    assert!(
        failed.is_empty(),
        "{} failed, such as {:?}",
        failed.len(),
        failed[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_whose_main_is_killed_under_its_calls_is_told_of_each_and_goes_on_by_another() {
    let (mut world, backends, _) = three(true).await;
    let backends: Vec<&Backend> = backends.iter().collect();
    let story = Story::tell(&mut world, "alice", "relay-a", &backends, AT_A_TIME, false).await;
    story.all_are_answered();
    let mut carried_out = backends[0].carried_out();
    for (number, times) in backends[1].carried_out() {
        *carried_out.entry(number).or_default() += times;
    }
    let twice = carried_out.into_iter().find(|(_, times)| *times > 1);
    assert_eq!(twice, None, "what may not be carried out twice was not");
    let edge = world.edge("alice");
    eventually("calls by the other main", async || {
        let done = edge.number("diary", CALLS, &json!({ "timeout": 5 })).await;
        if done.ended.is_ok() {
            Ok(())
        } else {
            Err(format!("{:?}", done.ended))
        }
    })
    .await;
    println!("calls by the other main after {:.2?}", story.killed_at.elapsed());
}
