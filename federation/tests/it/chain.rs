//! Mains in a line, of which each knows the next one only: how far announcements and calls go.

use std::sync::Arc;

use lapwing_base::Role;
use lapwing_federation::{Call, Echo, ErrorCode};

use crate::nodes::{Node, call, eventually};

const NAMES: [&str; 12] = [
    "main-1", "main-2", "main-3", "main-4", "main-5", "main-6", "main-7", "main-8", "main-9", "main-10",
    "main-11", "main-12",
];

/// A line of as many mains, each of which offers `at-` and its name, over so many links.
async fn line(nodes: usize, hops_max: u8) -> Vec<Node> {
    let mut line: Vec<Node> = Vec::new();
    for name in &NAMES[..nodes] {
        let node = Node::start_with(name, Role::Main, |config| config.hops_max = hops_max).await;
        node.offer(&format!("at-{name}"), Arc::new(Echo));
        line.push(node);
    }
    for (place, node) in line.iter().enumerate() {
        let next_to = line
            .iter()
            .enumerate()
            .filter(|(other, _)| other.abs_diff(place) == 1);
        node.name_mains(&next_to.map(|(_, node)| node).collect::<Vec<_>>());
    }
    line
}

/// Waits until everybody knows what is near enough, and looks that nobody knows of anything else.
async fn until_known(line: &[Node], hops_max: usize) {
    for (place, node) in line.iter().enumerate() {
        for (other_place, other) in line.iter().enumerate() {
            let service = format!("at-{}", other.name);
            let links = place.abs_diff(other_place);
            if links <= hops_max {
                eventually(&format!("{} to know {service}", node.name), || {
                    let hops: Vec<_> = node.offers(&service).iter().map(|offered| offered.hops).collect();
                    hops == [Some(links)]
                })
                .await;
            } else {
                assert_eq!(node.offers(&service).len(), 0, "{} and {service}", node.name);
            }
        }
    }
}

async fn stop(line: Vec<Node>) {
    for node in line {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_six_mains_in_a_line_those_within_three_links_are_known_and_called_and_no_others() {
    let line = line(6, 3).await;
    until_known(&line, 3).await;
    let answer = line[0].call(call("at-main-4", "echo", "[7]")).await;
    assert_eq!(answer.outcome, Ok("7".to_owned()));
    assert_eq!(answer.hops.len(), 4, "the nodes on the way");
    let far = line[0].call(call("at-main-5", "echo", "[7]")).await;
    assert_eq!(far.outcome.unwrap_err().code, ErrorCode::ServiceNotFound);
    stop(line).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_more_links_where_all_agree_what_is_announced_and_withdrawn_passes_twelve_mains() {
    let line = line(12, 5).await;
    until_known(&line, 5).await;
    let far = Call {
        links_max: 6,
        ..call("at-main-6", "echo", "[7]")
    };
    assert_eq!(line[0].call(far).await.outcome, Ok("7".to_owned()));
    assert!(line[5].withdraw("at-main-6"));
    eventually("nobody to know of it", || {
        line.iter().all(|node| node.offers("at-main-6").is_empty())
    })
    .await;
    stop(line).await;
}
