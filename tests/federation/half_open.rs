//! Links over which one direction is lost and nobody is told, in a laboratory of network namespaces.

use std::time::{Duration, Instant};

use futures::join;
use lapwing_netlab::{Host, Lab};
use serde_json::json;

use crate::backend::Backend;
use crate::calls::Done;
use crate::placed::{Placed, folder, mains};

/// What the guide promises of a home that is lost, and of a main.
const HOME_NOTICED: Duration = Duration::from_secs(3);
const MAIN_NOTICED: Duration = Duration::from_secs(1);

/// For a busy machine; a link that is watched loosely is not given up as soon as this.
const BUSY: Duration = Duration::from_millis(2_900);

/// Whoever is told at once waits for nothing but a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Longer than it takes to notice.
const SLOW: Duration = Duration::from_secs(30);

/// So long callers wait that are told nothing.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Alice at one main, bob with his diary at the other.
struct Street {
    _lab: Lab,
    _mains: Vec<Placed>,
    a: Host,
    b: Host,
    at_bob: Host,
    alice: Placed,
    _bob: Placed,
    diary: Backend,
    /// Numbers that were called already.
    called: u64,
}

impl Street {
    async fn start(seed: u64, folder_name: &str) -> Self {
        let lab = Lab::builder().seed(seed).start().unwrap();
        let folder = folder(folder_name);
        let [a, b, at_alice, at_bob] =
            ["relay-a", "relay-b", "alice", "bob"].map(|name| lab.public_host(name).unwrap());
        let diary = Backend::start_on(&at_bob);
        let mains = mains(&[a.clone(), b.clone()], &folder);
        let alice = Placed::home(&at_alice, &a, &folder, &[]);
        let bob = Placed::home(&at_bob, &b, &folder, &[diary.as_service("diary")]);
        alice.until_offered("diary", &["bob"]).await;
        Self {
            _lab: lab,
            _mains: mains,
            a,
            b,
            at_bob,
            alice,
            _bob: bob,
            diary,
            called: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.called += 1;
        self.called
    }

    /// Nothing that `from` sends reaches `to` any more while a call is under way: how that ended, and how long after the cut.
    async fn cut_under_a_call(&mut self, from: &Host, to: &Host) -> (Done, Duration) {
        let (number, times) = (self.next(), self.diary.calls() + 1);
        self.diary.take(SLOW);
        let calling = self
            .alice
            .number("diary", number, json!({ "timeout": TIMEOUT.as_secs() }));
        let cutting = async {
            self.diary.until_called(times).await;
            from.block(to).unwrap();
            Instant::now()
        };
        let (done, cut_at) = join!(calling, cutting);
        let after = (done.begun + done.took).saturating_duration_since(cut_at);
        (done, after)
    }

    /// Everything passes again, and the service is called as before.
    async fn mend(&mut self, from: &Host, to: &Host) {
        self.diary.take(Duration::ZERO);
        let begun = Instant::now();
        from.unblock(to).unwrap();
        let number = self.next();
        self.alice.until_answered("diary", number).await;
        println!("  called again {:.2?} after it was mended", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: lays out network namespaces"]
async fn whoever_waits_is_told_of_a_link_that_is_lost_one_way_and_the_service_is_back_when_it_is_mended() {
    let mut street = Street::start(34, "federation-half-open").await;
    let [a, b, bob] = [&street.a, &street.b, &street.at_bob].map(Host::clone);
    for (from, to, noticed) in [
        (&b, &bob, HOME_NOTICED),
        (&bob, &b, HOME_NOTICED),
        (&a, &b, MAIN_NOTICED),
        (&b, &a, MAIN_NOTICED),
    ] {
        let (done, after) = street.cut_under_a_call(from, to).await;
        println!(
            "{} to {} is cut: {:?} after {after:.2?}",
            from.name(),
            to.name(),
            done.ended.name()
        );
        assert_eq!(done.ended.name(), "peer_unreachable", "{done:?}");
        assert!(
            after < noticed + BUSY,
            "{} to {}: {after:?}",
            from.name(),
            to.name()
        );
        // Whoever comes later is told at once.
        let number = street.next();
        let later = street
            .alice
            .number("diary", number, json!({ "timeout": 20 }))
            .await;
        assert_eq!(later.ended.name(), "node_offline", "{later:?}");
        assert!(later.took < AT_ONCE, "{later:?}");
        street.mend(from, to).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: lays out network namespaces"]
async fn an_answer_that_is_lost_on_its_way_is_given_to_whoever_asks_again_by_the_same_id() {
    let mut street = Street::start(35, "federation-lost-answer").await;
    let [b, bob] = [&street.b, &street.at_bob].map(Host::clone);
    let number = street.next();
    let named = json!({ "timeout": TIMEOUT.as_secs(), "message_id": "order-17" });
    // The service has answered before anybody notices that what bob says is not heard.
    street.diary.take(Duration::from_millis(300));
    let calling = street.alice.number("diary", number, named.clone());
    let cutting = async {
        street.diary.until_called(1).await;
        bob.block(&b).unwrap();
    };
    let (lost, ()) = join!(calling, cutting);
    assert_eq!(lost.ended.name(), "peer_unreachable", "{lost:?}");
    assert_eq!(street.diary.carried_out()[&number], 1);
    street.mend(&bob, &b).await;
    let again = street.alice.number("diary", number, named).await;
    assert_eq!(again.ended.result()["args"], json!([number]));
    assert_eq!(street.diary.carried_out()[&number], 1, "it was carried out once");
}
