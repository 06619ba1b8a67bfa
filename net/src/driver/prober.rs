//! Bandwidth probes: sends them where [`Probes`] says, and answers those of others.
//!
//! The receiver measures, from its first slice to its last, so that neither the round trip nor what the sender's
//! own buffers take at once counts. Where the sender took longer to let go of the same slices, its time counts: a
//! receiver that came late to the first finds several at once and would measure too much.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, trace};

use super::channel::{Channel, ChannelError};
use super::network::{RequestError, open};
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
struct Measured {
    /// What arrived after the first slice.
    counted: ByteSize,
    /// Between the end of the first slice and the end of the last.
    took: Duration,
}

/// Probes members' links as they become due, for ever.
pub(crate) async fn probe_members(shared: Arc<Shared>, mut probes: Probes) {
    loop {
        match probes.next(&candidates(&shared), now()) {
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
pub(crate) async fn answer_probes(mut queue: mpsc::Receiver<Channel>) {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            channel = queue.recv(), if answers.len() < ANSWERED_AT_ONCE => match channel {
                Some(channel) => {
                    let peer = channel.peer();
                    answers.spawn(async move {
                        if !matches!(tokio::time::timeout(PROBE_TIMEOUT, answer(channel)).await, Ok(Ok(()))) {
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

async fn answer(mut channel: Channel) -> Result<(), ChannelError> {
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
    channel.send(&encode(&Measured { counted, took })).await?;
    channel.finish().await
}
