//! How fast links are: tells peers what transfers of theirs have shown, and probes where there were none, as [`Probes`]
//! says.
//!
//! A transfer is measured by whoever receives it, and told to the sender at most every few seconds.
//!
//! Of a probe too, the receiver measures, from its first slice to its last, so that neither the round trip nor what the sender's
//! own buffers take at once counts. Where the sender took longer to let go of the same slices, its time counts: a
//! receiver that came late to the first finds several at once and would measure too much.

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
use crate::{Access, Bucket, Candidate, Kind, Probes, decode, encode};
use lapwing_base::{Bandwidth, ByteSize, Class, PeerId};

/// Slices of a probe, and the answer to it.
pub(crate) const PROBE: Kind = Kind {
    class: Class::Maintenance,
    name: "probe",
    access: Access::Members,
    frame_max: Bucket::SLICE,
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
                let begun_at = now();
                match tokio::time::timeout(PROBE_TIMEOUT, probe(&shared, peer, &mut probes)).await {
                    Ok(Ok(speed)) => {
                        trace!(%peer, %speed, "link probed");
                        shared.record(peer, speed);
                    }
                    Ok(Err(error)) => debug!(%peer, %error, "probe failed"),
                    Err(_) => debug!(%peer, "probe was not answered in time"),
                }
                let ended_at = now();
                probes.ended(ended_at - begun_at, ended_at);
            }
        }
    }
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

async fn probe(shared: &Arc<Shared>, peer: PeerId, probes: &mut Probes) -> Result<Bandwidth, RequestError> {
    let known = {
        let fresh = shared.fresh();
        let peers = shared.peers();
        peers
            .get(&peer)
            .and_then(|entry| entry.estimate.speed(now(), fresh))
    };
    let size = Probes::size(known);
    let first = send_probe(shared, peer, size).await?;
    if first.took >= Probes::TOOK_MIN || size >= Probes::SIZE_MAX {
        return Ok(Bandwidth::per(first.counted, first.took));
    }
    probes.grown(now());
    let second = send_probe(shared, peer, Probes::SIZE_MAX).await?;
    Ok(Bandwidth::per(second.counted, second.took))
}

async fn send_probe(shared: &Arc<Shared>, peer: PeerId, size: ByteSize) -> Result<Measured, RequestError> {
    let mut channel = open(shared, peer, PROBE, PROBE_TIMEOUT).await?;
    let slice = vec![0; Bucket::SLICE.as_usize()];
    channel.send(&slice).await?;
    let begun_at = now();
    for _ in 1..size.0 / Bucket::SLICE.0 {
        channel.send(&slice).await?;
    }
    let let_go = now() - begun_at;
    channel.finish().await?;
    let no_answer = RequestError::NoAnswer { peer, kind: PROBE };
    let answer = channel.receive().await?.ok_or(no_answer)?;
    let malformed = |source| ChannelError::Malformed {
        peer,
        kind: PROBE,
        source,
    };
    let seen: Measured = decode(&answer).map_err(malformed)?;
    Ok(Measured {
        counted: seen.counted.min(size),
        took: seen.took.max(let_go),
    })
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
    channel.receive().await?;
    let begun_at = now();
    let mut ended_at = begun_at;
    let mut counted = ByteSize(0);
    while counted < Probes::SIZE_MAX {
        let Some(slice) = channel.receive().await? else {
            break;
        };
        counted.0 += slice.len() as u64;
        ended_at = now();
    }
    let took = ended_at - begun_at;
    if !took.is_zero() {
        let (now, fresh) = (now(), shared.fresh());
        let mut peers = shared.peers();
        let entry = peers.entry(channel.peer());
        entry.download.record(Bandwidth::per(counted, took), now, fresh);
    }
    channel.send(&encode(&Measured { counted, took })).await?;
    channel.finish().await
}
