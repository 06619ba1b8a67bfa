//! How fast links are: tells peers what transfers of theirs have shown, and probes where there were none, as [`Probes`]
//! says.
//!
//! A transfer is measured by whoever receives it, and told to the sender at most every few seconds.
//!
//! Of a probe too, the receiver measures, and only its later half, so that neither the round trip nor a congestion window
//! that has yet to grow counts. Where the sender took longer to let go of the same slices, its time counts: a
//! receiver that came late to the first finds several at once and would measure too much.
//!
//! A probe beside other traffic, at either end, measures what that leaves, or how buffers empty, and does not count.
//! Whoever believed it would turn away from a link that is only busy.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, trace};

use super::channel::{Channel, ChannelError};
use super::network::{RequestError, open, request};
use super::now;
use super::shared::Shared;
use crate::{Access, Candidate, Kind, ProbeClock, ProbeTiming, Probes, decode, encode};
use lapwing_base::{Bandwidth, ByteSize, Class, PeerId};

/// Slices of a probe, and the answer to it.
pub(crate) const PROBE: Kind = Kind {
    class: Class::Maintenance,
    name: "probe",
    access: Access::Members,
    frame_max: Probes::SLICE,
};

/// Probes of others that wait; more of them would only measure each other.
pub(crate) const QUEUE: usize = 16;

/// Probes of others that are answered at the same time.
const ANSWERED_AT_ONCE: usize = 4;

/// 64 KiB in this time is 35 kbit/s: slower links are of no use to anybody.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// What arrived after the first slice or frame.
    counted: ByteSize,
    /// Between the end of the first of them and the end of the last.
    took: Duration,
}

/// The answer to a probe.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    timing: ProbeTiming,
    /// What else went to and from the one who answers meanwhile.
    beside: ByteSize,
}

/// For so long a node looks whether it is busy.
const LOOK: Duration = Duration::from_millis(100);

/// What a transfer has shown, for the one who sent it.
pub(crate) const MEASURED: Kind = Kind {
    class: Class::Control,
    name: "measured",
    access: Access::Members,
    frame_max: ByteSize(64),
};

/// Of one peer so often at most: several within the interval in which it would probe otherwise, and no more than a
/// message now and then.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// Over a connection that stands; if it does not, nobody needs to know.
const TELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes a transfer for a measurement of a peer's link to this node. The peer is told, if there is room among those that
/// wait to be.
pub(crate) fn transfer_received(shared: &Shared, peer: PeerId, size: ByteSize, took: Duration) {
    if size < Probes::SIZE_MIN || took.is_zero() {
        return;
    }
    let (now, fresh) = (now(), shared.fresh());
    let due = {
        let mut peers = shared.peers();
        let entry = peers.entry(peer);
        entry.download.record(Bandwidth::per(size, took), now, fresh);
        let due = entry.told_at.is_none_or(|at| now >= at + TELL_INTERVAL);
        if due {
            entry.told_at = Some(now);
        }
        due
    };
    if due {
        // Another transfer comes, or a probe.
        let _ = shared.received.try_send((peer, Measured { counted: size, took }));
    }
}

/// Tells peers what their transfers have shown, until the queue ends.
pub(crate) async fn tell_received(shared: Arc<Shared>, mut queue: mpsc::Receiver<(PeerId, Measured)>) {
    while let Some((peer, measured)) = queue.recv().await {
        if shared.link(&peer).is_none() {
            continue;
        }
        let said = encode(&measured);
        let told = request(&shared, peer, MEASURED, &said, TELL_TIMEOUT).await;
        if let Err(error) = told {
            trace!(%peer, %error, "a peer was not told how fast it is");
        }
    }
}

/// Takes in what peers say of our transfers to them, until the queue ends.
pub(crate) async fn hear_received(shared: Arc<Shared>, mut queue: mpsc::Receiver<Channel>) {
    while let Some(mut channel) = queue.recv().await {
        let peer = channel.peer();
        let heard = tokio::time::timeout(TELL_TIMEOUT, async {
            let Some(frame) = channel.receive().await? else {
                return Ok(());
            };
            let measured: Measured = decode(&frame).map_err(|source| ChannelError::Malformed {
                peer,
                kind: MEASURED,
                source,
            })?;
            if measured.is_of(&shared, peer) {
                shared.record(peer, Bandwidth::per(measured.counted, measured.took));
            }
            channel.send(&[]).await?;
            channel.finish().await
        });
        if !matches!(heard.await, Ok(Ok(()))) {
            trace!(%peer, "what a peer said of a transfer was not understood");
        }
    }
}

impl Measured {
    /// Whether there can have been such a transfer.
    fn is_of(&self, shared: &Shared, peer: PeerId) -> bool {
        let sent = shared.counters(peer).sent();
        let bulk = sent[Class::Maintenance.index()].0 + sent[Class::Model.index()].0;
        (Probes::SIZE_MIN.0..=bulk).contains(&self.counted.0) && !self.took.is_zero()
    }
}

/// Probes members' links as they become due, for ever.
pub(crate) async fn probe_members(shared: Arc<Shared>, mut probes: Probes) {
    loop {
        match probes.next(&candidates(&shared), shared.acceptor.members(), now()) {
            Err(at) => {
                tokio::select! {
                    () = shared.probe_wanted.notified() => (),
                    () = tokio::time::sleep_until(at.into()) => (),
                }
            }
            Ok(peer) => {
                let speed = if is_idle(&shared).await {
                    let begun_at = now();
                    let probing = tokio::time::timeout(PROBE_TIMEOUT, probe(&shared, peer, &mut probes));
                    let probed = probing.await;
                    let ended_at = now();
                    probes.ended(ended_at - begun_at, ended_at);
                    match probed {
                        Ok(Ok(speed)) => speed,
                        Ok(Err(error)) => {
                            debug!(%peer, %error, "probe failed");
                            continue;
                        }
                        Err(_) => {
                            debug!(%peer, "probe was not answered in time");
                            continue;
                        }
                    }
                } else {
                    None
                };
                trace!(%peer, ?speed, "link probed");
                if speed.is_none() {
                    probes.disturbed(peer, shared.acceptor.members(), now());
                }
                // What was known is not forgotten for being busy.
                if let Some(speed) = speed.or_else(|| known(&shared, peer)) {
                    shared.record(peer, speed);
                }
            }
        }
    }
}

/// Whether a probe would have this node's links for itself.
async fn is_idle(shared: &Shared) -> bool {
    let before = traffic(shared);
    tokio::time::sleep(LOOK).await;
    Probes::has_been_alone(Probes::SIZE_MIN, ByteSize(traffic(shared).saturating_sub(before)))
}

fn candidates(shared: &Shared) -> Vec<Candidate> {
    let gate = shared.acceptor.gate();
    let peers = shared.peers();
    peers
        .iter()
        .filter(|(peer, entry)| entry.connections > 0 && gate.members.contains(peer))
        .map(|(peer, entry)| Candidate {
            peer: *peer,
            measured_at: entry.estimate.measured_at(),
        })
        .collect()
}

/// What is known of the link to a peer.
fn known(shared: &Shared, peer: PeerId) -> Option<Bandwidth> {
    let fresh = shared.fresh();
    let peers = shared.peers();
    peers.get(&peer)?.estimate.speed(now(), fresh)
}

/// How fast the link to a peer is, by a probe that grows until it has measured that; `None` if it was not alone, as when
/// two that have just met probe each other at the same time.
async fn probe(
    shared: &Arc<Shared>,
    peer: PeerId,
    probes: &mut Probes,
) -> Result<Option<Bandwidth>, RequestError> {
    let rtt = rtt(shared, peer);
    let mut size = Probes::size(known(shared, peer), rtt);
    loop {
        let Answer { timing, beside } = send_probe(shared, peer, size).await?;
        if !Probes::has_been_alone(size, beside) {
            return Ok(None);
        }
        match Probes::larger(size, timing, rtt) {
            Some(larger) => size = larger,
            None => return Ok(Some(Bandwidth::per(timing.counted, timing.took))),
        }
        probes.grown(now());
    }
}

/// Zero if it is not known.
fn rtt(shared: &Shared, peer: PeerId) -> Duration {
    let link = shared.link(&peer);
    link.and_then(|link| link.rtt()).unwrap_or_default()
}

/// What has gone beside the probe is the larger of what both ends have seen of it.
async fn send_probe(shared: &Arc<Shared>, peer: PeerId, size: ByteSize) -> Result<Answer, RequestError> {
    let mut channel = open(shared, peer, PROBE, PROBE_TIMEOUT).await?;
    let slice = vec![0; Probes::SLICE.as_usize()];
    let before = traffic(shared);
    let mut let_go = ProbeClock::default();
    for _ in 0..size.0 / Probes::SLICE.0 {
        channel.send(&slice).await?;
        let_go.record(now());
    }
    channel.finish().await?;
    let no_answer = RequestError::NoAnswer { peer, kind: PROBE };
    let answer = channel.receive().await?.ok_or(no_answer)?;
    let malformed = |source| ChannelError::Malformed {
        peer,
        kind: PROBE,
        source,
    };
    let mut seen: Answer = decode(&answer).map_err(malformed)?;
    seen.timing.counted = seen.timing.counted.min(size);
    if let Some(let_go) = let_go.timing() {
        seen.timing.took = seen.timing.took.max(let_go.took);
    }
    let beside = ByteSize(traffic(shared).saturating_sub(before).saturating_sub(size.0));
    seen.beside = seen.beside.max(beside);
    Ok(seen)
}

/// Bytes with everybody so far that can fill a link. In both directions, since acknowledgements wait behind what goes back.
fn traffic(shared: &Shared) -> u64 {
    let peers = shared.peers();
    let large = [Class::Call, Class::Maintenance, Class::Model];
    let ways = [peers.sent(), peers.received()];
    ways.iter()
        .flat_map(|way| large.map(|class| way[class.index()].0))
        .sum()
}

/// Answers the probes of others until the queue ends.
pub(crate) async fn answer_probes(shared: Arc<Shared>, mut queue: mpsc::Receiver<Channel>) {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            channel = queue.recv(), if answers.len() < ANSWERED_AT_ONCE => match channel {
                Some(channel) => {
                    let peer = channel.peer();
                    let shared = Arc::clone(&shared);
                    answers.spawn(async move {
                        let answered = tokio::time::timeout(PROBE_TIMEOUT, answer(&shared, channel));
                        if !matches!(answered.await, Ok(Ok(()))) {
                            trace!(%peer, "a probe was not carried through");
                        }
                    });
                }
                None => break,
            },
            Some(_) = answers.join_next() => (),
        }
    }
}

async fn answer(shared: &Shared, mut channel: Channel) -> Result<(), ChannelError> {
    let before = traffic(shared);
    let mut clock = ProbeClock::default();
    while !clock.is_full() {
        let Some(slice) = channel.receive().await? else {
            break;
        };
        if slice.len() as u64 != Probes::SLICE.0 {
            // No probe of ours has such a slice, and others could go on with them.
            return Ok(());
        }
        clock.record(now());
    }
    // Nobody probes with less.
    let Some(timing) = clock.timing() else {
        return Ok(());
    };
    let size = ByteSize(timing.counted.0 * 2);
    let beside = ByteSize(traffic(shared).saturating_sub(before).saturating_sub(size.0));
    let is_whole = Probes::larger(size, timing, rtt(shared, channel.peer())).is_none();
    if is_whole && !timing.took.is_zero() {
        let (now, fresh) = (now(), shared.fresh());
        let speed = Bandwidth::per(timing.counted, timing.took);
        let mut peers = shared.peers();
        let download = &mut peers.entry(channel.peer()).download;
        let speed = if Probes::has_been_alone(size, beside) {
            Some(speed)
        } else {
            download.speed(now, fresh)
        };
        if let Some(speed) = speed {
            download.record(speed, now, fresh);
        }
    }
    channel.send(&encode(&Answer { timing, beside })).await?;
    channel.finish().await
}
