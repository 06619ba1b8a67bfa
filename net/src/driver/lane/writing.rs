//! The task that writes a lane's stream: one slice at a time, each flushed, so that what is urgent waits for one.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::io::{AsyncWrite, AsyncWriteExt as _, WriteHalf};

use super::Toll;
use super::shared::{LaneEnd, Shared, now};
use crate::Turn;

/// How often the peer is asked for an answer: as often as a connection is kept alive.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long the peer may be silent: three pings, as long as a QUIC connection may be idle.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long the last bytes of a lane that ends here may take.
const CLOSE_MAX: Duration = Duration::from_millis(500);

pub(super) async fn run<T: AsyncWrite>(mut io: WriteHalf<T>, shared: Arc<Shared>, toll: Option<Toll>) {
    let stop = shared.stop.clone();
    let end = stop
        .run_until_cancelled(write(&mut io, &shared, toll.as_ref()))
        .await;
    shared.end(end.unwrap_or(LaneEnd::Stopped));
    // Whether the peer sees the end or a broken stream makes no difference to us.
    drop(tokio::time::timeout(CLOSE_MAX, io.close()).await);
}

async fn write<T: AsyncWrite>(io: &mut WriteHalf<T>, shared: &Shared, toll: Option<&Toll>) -> LaneEnd {
    let mut out = BytesMut::new();
    let mut ping_at = now() + PING_INTERVAL;
    loop {
        let now = now();
        if now >= ping_at {
            ping_at = now + PING_INTERVAL;
            let silent = shared.with(|state| {
                state.mux.ping(now);
                now.saturating_duration_since(state.heard_at) > SILENCE_MAX
            });
            if silent {
                return LaneEnd::Silent;
            }
        }
        out.clear();
        match transmit(shared, toll, now, &mut out) {
            Turn::Wrote => {
                let written = async {
                    io.write_all(&out).await?;
                    io.flush().await
                };
                match tokio::time::timeout(SILENCE_MAX, written).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return LaneEnd::Io(Arc::new(error)),
                    // The peer takes nothing, not even one slice.
                    Err(_) => return LaneEnd::Silent,
                }
            }
            Turn::Wait(at) => {
                let at = at.map_or(ping_at, |at| at.min(ping_at));
                tokio::select! {
                    () = shared.to_send.notified() => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                }
            }
        }
    }
}

fn transmit(shared: &Shared, toll: Option<&Toll>, now: Instant, out: &mut BytesMut) -> Turn {
    let mut wakers = Vec::new();
    let turn = shared.with(|state| {
        let mut events = Vec::new();
        let mut toll = |class, size| toll.map_or(now, |toll| toll(class, size, now));
        let turn = state
            .mux
            .transmit(now, &mut toll, out, &mut |event| events.push(event));
        for event in events {
            wakers.extend(state.waiting_for(event));
        }
        turn
    });
    wakers.into_iter().for_each(Waker::wake);
    turn
}
