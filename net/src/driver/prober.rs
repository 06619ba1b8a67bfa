//! How fast links are: tells peers what transfers of theirs have shown, and probes where there were none, as [`Probes`]
//! says.
//!
//! A transfer is measured by whoever receives it, as [`TransferTiming`] says, and told to the sender at most every few seconds.
//!
//! Of a probe too, the receiver measures, and only its later half, so that neither the round trip nor a congestion window
//! that has yet to grow counts. Where the sender took longer to let go of the same slices, its time counts: a
//! receiver that came late to the first finds several at once and would measure too much.
//!
//! A node takes part in one probe at a time: it asks before it sends, and a peer that probes or is probed says no. Where
//! everybody has just come, all would otherwise measure each other's probes and nobody a link.
//!
//! A probe beside other traffic, at either end, measures what that leaves, or how buffers empty, and does not count.
//! Whoever believed it would turn away from a link that is only busy. Nor does one that was mostly a pause. So neither end
//! begins one where it has seen other traffic a moment ago: that would only be disturbed.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, trace};

use super::channel::{Channel, ChannelError};
use super::network::{RequestError, open, request};
use super::now;
use super::shared::Shared;
use crate::{Access, Candidate, Kind, ProbeClock, ProbeTiming, Probes, TransferTiming, decode, encode};
use lapwing_base::{Bandwidth, ByteSize, Class, PeerId};

/// Questions whether a probe may be sent, its slices, and the answers.
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

/// Who is asked looks for a moment and answers; where a link needs longer for that, it is too busy to be measured. Whoever
/// waits keeps its own turn from others, and a bulk lane open.
const TURN_TIMEOUT: Duration = Duration::from_secs(4);

/// Whether a probe of so many slices may be sent.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    slices: u32,
}

/// The answer to the question.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
enum Turn {
    Yours,
    /// Somebody else's.
    Taken,
    /// Nobody's: there is other traffic.
    Busy,
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
pub(crate) fn transfer_received(shared: &Shared, peer: PeerId, timing: TransferTiming) {
    let Some(speed) = timing.speed() else { return };
    let (now, fresh) = (now(), shared.fresh());
    trace!(%peer, %speed, counted = timing.counted.0, took = ?timing.took, timing.is_steady, "transfer measured");
    let due = {
        let mut peers = shared.peers();
        let entry = peers.entry(peer);
        match timing.is_steady {
            true => entry.download.record(speed, now, fresh),
            false => entry.download.record_at_least(speed, now, fresh),
        }
        let due = entry.told_at.is_none_or(|at| now >= at + TELL_INTERVAL);
        if due {
            entry.told_at = Some(now);
        }
        due
    };
    if due {
        // Another transfer comes, or a probe.
        let _ = shared.received.try_send((peer, timing));
    }
}

/// Tells peers what their transfers have shown, until the queue ends.
pub(crate) async fn tell_received(shared: Arc<Shared>, mut queue: mpsc::Receiver<(PeerId, TransferTiming)>) {
    while let Some((peer, timing)) = queue.recv().await {
        if shared.link(&peer).is_none() {
            continue;
        }
        let said = encode(&timing);
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
            let timing: TransferTiming = decode(&frame).map_err(|source| ChannelError::Malformed {
                peer,
                kind: MEASURED,
                source,
            })?;
            match timing.speed().filter(|_| can_have_been(timing, &shared, peer)) {
                Some(speed) if timing.is_steady => shared.record(peer, speed),
                Some(speed) => shared.record_at_least(peer, speed),
                None => (),
            }
            channel.send(&[]).await?;
            channel.finish().await
        });
        if !matches!(heard.await, Ok(Ok(()))) {
            trace!(%peer, "what a peer said of a transfer was not understood");
        }
    }
}

/// Whether there can have been such a transfer.
fn can_have_been(timing: TransferTiming, shared: &Shared, peer: PeerId) -> bool {
    let sent = shared.counters(peer).sent();
    let bulk = sent[Class::Maintenance.index()].0 + sent[Class::Model.index()].0;
    timing.counted.0 <= bulk
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
                let members = shared.acceptor.members();
                let probed = if is_idle(&shared).await {
                    let mut begun_at = None;
                    let is_first = known(&shared, peer).is_none();
                    let probing = probe(&shared, peer, &mut probes, &mut begun_at);
                    let probed = tokio::time::timeout(PROBE_TIMEOUT, probing).await;
                    let ended_at = now();
                    if let Some(begun_at) = begun_at {
                        probes.ended(ended_at - begun_at, is_first, ended_at);
                    }
                    match probed {
                        Ok(Ok(probed)) => probed,
                        Ok(Err(error)) => {
                            debug!(%peer, %error, "probe failed");
                            probes.failed(peer, ended_at);
                            continue;
                        }
                        Err(_) => {
                            debug!(%peer, "probe was not answered in time");
                            probes.failed(peer, ended_at);
                            continue;
                        }
                    }
                } else {
                    Probed::Disturbed
                };
                trace!(%peer, ?probed, "link probed");
                match probed {
                    Probed::Alone(speed) => shared.record(peer, speed),
                    Probed::Refused => probes.refused(peer, members, now()),
                    Probed::Disturbed => {
                        probes.disturbed(peer, members, now());
                        // What was known is not forgotten for being busy.
                        if let Some(speed) = known(&shared, peer) {
                            shared.record(peer, speed);
                        }
                    }
                }
            }
        }
    }
}

/// What came of a probe.
#[derive(Clone, Copy, Debug)]
enum Probed {
    Alone(Bandwidth),
    /// Something else was on its way, so that the link was not measured.
    Disturbed,
    /// The peer takes part in another one.
    Refused,
}

/// Whether a probe would have this node's links for itself. Those that others send are no traffic: they are waited for.
async fn is_idle(shared: &Shared) -> bool {
    // It is never closed.
    drop(shared.probing.acquire().await);
    let let_in = || shared.probes_let_in.load(Ordering::Relaxed);
    let before = let_in();
    is_quiet(shared).await || let_in() > before
}

/// Whether there is no traffic that a probe would measure, looking for a moment.
async fn is_quiet(shared: &Shared) -> bool {
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

/// How fast the link to a peer is, by a probe that grows until it has measured that. Says when it began, if it did.
async fn probe(
    shared: &Arc<Shared>,
    peer: PeerId,
    probes: &mut Probes,
    begun_at: &mut Option<Instant>,
) -> Result<Probed, RequestError> {
    let mut channel = open(shared, peer, PROBE, PROBE_TIMEOUT).await?;
    // Not before there is a channel, which may take several round trips.
    let _turn = shared.probing.acquire().await;
    let rtt = rtt(shared, peer);
    let mut size = Probes::size(known(shared, peer), rtt);
    loop {
        match ask(&mut channel, peer, size).await? {
            Turn::Yours => (),
            Turn::Taken => return Ok(Probed::Refused),
            Turn::Busy => return Ok(Probed::Disturbed),
        }
        begun_at.get_or_insert_with(now);
        let Answer { timing, beside } = send_probe(shared, &mut channel, peer, size).await?;
        trace!(%peer, %size, ?timing, %beside, "probe answered");
        if !Probes::has_been_alone(size, beside) {
            return Ok(Probed::Disturbed);
        }
        match Probes::larger(size, timing, rtt) {
            Some(larger) => size = larger,
            None if Probes::has_stalled(size, timing) => return Ok(Probed::Disturbed),
            None => {
                channel.finish().await?;
                return Ok(Probed::Alone(Bandwidth::per(timing.counted, timing.took)));
            }
        }
        probes.grown(now());
    }
}

async fn ask(channel: &mut Channel, peer: PeerId, size: ByteSize) -> Result<Turn, RequestError> {
    let slices = u32::try_from(size.0 / Probes::SLICE.0).unwrap_or(u32::MAX);
    channel.send(&encode(&Question { slices })).await?;
    tokio::time::timeout(TURN_TIMEOUT, hear(channel, peer))
        .await
        .map_err(|_| RequestError::NoAnswer { peer, kind: PROBE })?
}

async fn hear<T: DeserializeOwned>(channel: &mut Channel, peer: PeerId) -> Result<T, RequestError> {
    let no_answer = RequestError::NoAnswer { peer, kind: PROBE };
    let answer = channel.receive().await?.ok_or(no_answer)?;
    let malformed = |source| ChannelError::Malformed {
        peer,
        kind: PROBE,
        source,
    };
    Ok(decode(&answer).map_err(malformed)?)
}

/// Zero if it is not known.
fn rtt(shared: &Shared, peer: PeerId) -> Duration {
    let link = shared.link(&peer);
    link.and_then(|link| link.rtt()).unwrap_or_default()
}

/// What has gone beside the probe is the larger of what both ends have seen of it.
async fn send_probe(
    shared: &Shared,
    channel: &mut Channel,
    peer: PeerId,
    size: ByteSize,
) -> Result<Answer, RequestError> {
    let slice = vec![0; Probes::SLICE.as_usize()];
    let before = traffic(shared);
    let mut let_go = ProbeClock::default();
    for _ in 0..size.0 / Probes::SLICE.0 {
        channel.send(&slice).await?;
        let_go.record(now());
    }
    let mut seen: Answer = hear(channel, peer).await?;
    seen.timing.counted = seen.timing.counted.min(size);
    if let Some(let_go) = let_go.timing() {
        seen.timing.took = seen.timing.took.max(let_go.took);
        seen.timing.is_stalled |= let_go.is_stalled;
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

/// Until the one who probes has finished: a probe that grows keeps its turn.
async fn answer(shared: &Shared, mut channel: Channel) -> Result<(), ChannelError> {
    let mut turn = None;
    while let Some(frame) = channel.receive().await? {
        let slices = match decode::<Question>(&frame) {
            Ok(Question { slices }) if SLICES.contains(&u64::from(slices)) => slices,
            // No probe of ours is like this.
            _ => return Ok(()),
        };
        if turn.is_none() {
            turn = shared.probing.try_acquire().ok();
            let refused = match turn {
                None => Some(Turn::Taken),
                Some(_) if !is_quiet(shared).await => Some(Turn::Busy),
                Some(_) => None,
            };
            if let Some(refused) = refused {
                drop(turn);
                channel.send(&encode(&refused)).await?;
                return channel.finish().await;
            }
            shared.probes_let_in.fetch_add(1, Ordering::Relaxed);
        }
        channel.send(&encode(&Turn::Yours)).await?;
        let before = traffic(shared);
        let mut clock = ProbeClock::default();
        for _ in 0..slices {
            match channel.receive().await? {
                Some(slice) if slice.len() as u64 == Probes::SLICE.0 => clock.record(now()),
                _ => return Ok(()),
            }
        }
        let Some(timing) = clock.timing() else {
            return Ok(());
        };
        let size = ByteSize(Probes::SLICE.0 * u64::from(slices));
        let beside = ByteSize(traffic(shared).saturating_sub(before).saturating_sub(size.0));
        answered(shared, channel.peer(), size, timing, beside);
        channel.send(&encode(&Answer { timing, beside })).await?;
    }
    channel.finish().await
}

/// Of a probe: from the least to the most.
const SLICES: RangeInclusive<u64> =
    Probes::SIZE_MIN.0 / Probes::SLICE.0..=Probes::SIZE_MAX.0 / Probes::SLICE.0;

/// Takes a probe of a peer's for a measurement of what arrives from it, if it was one.
fn answered(shared: &Shared, peer: PeerId, size: ByteSize, timing: ProbeTiming, beside: ByteSize) {
    if timing.took.is_zero() || Probes::larger(size, timing, rtt(shared, peer)).is_some() {
        return;
    }
    let (now, fresh) = (now(), shared.fresh());
    let mut peers = shared.peers();
    let download = &mut peers.entry(peer).download;
    let is_alone = Probes::has_been_alone(size, beside) && !Probes::has_stalled(size, timing);
    let speed = if is_alone {
        Some(Bandwidth::per(timing.counted, timing.took))
    } else {
        download.speed(now, fresh)
    };
    if let Some(speed) = speed {
        download.record(speed, now, fresh);
    }
}
