//! Peers that do not keep to the rules of a lane: it ends, is counted, and the node goes on serving others.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::swarm::Stream;

use crate::lane_peer::Relayed;
use crate::nodes::{Node, PATIENCE, eventually, kind};
use lapwing_base::{ByteSize, Class};
use lapwing_net::{Access, Gate, Hello, Kind, Refused};

const ANYBODY: Kind = Kind {
    class: Class::Call,
    name: "anybody",
    access: Access::Anyone,
    frame_max: ByteSize::mib(1),
};

#[tokio::test]
async fn what_is_no_packet_ends_a_lane() {
    // No kind of packet; a class that there is not; data for a channel that nobody has opened; an empty slice, and one
    // that is too long.
    let garbage = [
        vec![0xff; 100],
        vec![OPEN, 1, 0, 0, 0, 77],
        [data(7, &[1]), vec![0; 100]].concat(),
        [open(1), vec![DATA, 1, 0, 0, 0, 0, 0]].concat(),
        [open(1), vec![DATA, 1, 0, 0, 0, 0xff, 0xff]].concat(),
    ];
    let besieged = Besieged::start().await;
    for (times, bytes) in (1..).zip(garbage) {
        let mut lanes = besieged.relayed.lanes(1).await;
        let lane = &mut lanes.opened[0].stream;
        lane.write_all(&bytes).await.unwrap();
        lane.flush().await.unwrap();
        ends(lane).await;
        let what = format!("garbage number {times} is counted");
        eventually(&what, || besieged.refused().sessions == times).await;
    }
    besieged.serves_others().await;
}

#[tokio::test]
async fn more_than_was_granted_ends_a_lane() {
    let besieged = Besieged::start().await;
    // Taken, and not read.
    let _unread = besieged.relayed.home.network.serve(ANYBODY, 4);
    let mut lanes = besieged.relayed.lanes(1).await;
    let lane = &mut lanes.opened[0].stream;
    let hello = Hello::new(None, &ANYBODY).to_bytes();
    let hello = [&(hello.len() as u32).to_le_bytes(), hello.as_slice()].concat();
    lane.write_all(&[open(1), data(1, &hello)].concat())
        .await
        .unwrap();
    let slice = data(1, &[7; 16 << 10]);
    let mut written = 0;
    while lane.write_all(&slice).await.is_ok() && lane.flush().await.is_ok() {
        written += slice.len();
        assert!(written < 16 << 20, "there is an end to what is taken");
    }
    eventually("it is counted", || besieged.refused().sessions == 1).await;
    besieged.serves_others().await;
}

#[tokio::test]
async fn a_lane_that_says_nothing_is_given_up() {
    let besieged = Besieged::start().await;
    let mut lanes = besieged.relayed.lanes(1).await;
    besieged.serves_others().await;
    let lane = &mut lanes.opened[0].stream;
    // The opening leaves with it; pings are not answered.
    lane.flush().await.unwrap();
    ends(lane).await;
    besieged.serves_others().await;
}

/// A home that somebody means harm through a relay, and a member that means none.
struct Besieged {
    relayed: Relayed,
    friend: Node,
}

impl Besieged {
    async fn start() -> Self {
        let (mut relayed, friend) = (Relayed::start().await, Node::start().await);
        friend.admit(&[relayed.home.id()]);
        friend.learn(&relayed.home);
        let members = HashSet::from([relayed.relay.id(), friend.id()]);
        relayed
            .home
            .gate
            .send_modify(|gate: &mut Gate| gate.members = Arc::new(members));
        relayed.home.echo(kind(Class::Consensus));
        Self { relayed, friend }
    }

    fn refused(&self) -> Refused {
        self.relayed.home.network.status().refused
    }

    async fn serves_others(&self) {
        let home = self.relayed.home.id();
        self.friend.network.disconnect(home).await;
        let asked = self
            .friend
            .network
            .request(home, kind(Class::Consensus), b"well?", PATIENCE);
        assert_eq!(asked.await.unwrap(), "well?");
    }
}

/// Waits until the other end has closed it, whichever way.
async fn ends(lane: &mut Stream) {
    let mut read = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, lane.read_to_end(&mut read)).await;
    assert!(ended.is_ok(), "the lane goes on");
}

const OPEN: u8 = 1;
const DATA: u8 = 2;

fn open(channel: u32) -> Vec<u8> {
    [
        &[OPEN],
        channel.to_le_bytes().as_slice(),
        &[Class::Call.index() as u8],
    ]
    .concat()
}

fn data(channel: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_le_bytes();
    [&[DATA], channel.to_le_bytes().as_slice(), &length, payload].concat()
}
