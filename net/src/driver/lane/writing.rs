//! The task that writes a lane's stream: one slice at a time, each flushed, so that what is urgent waits for one.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::io::{AsyncWrite, AsyncWriteExt as _, WriteHalf};

use super::Toll;
use super::shared::{LaneEnd, Shared, now};
use crate::{Beat, Liveness, Pace, Turn};

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
    let mut liveness = Liveness::new(Pace::LOOSE, now());
    loop {
        let mut look_at = match look(shared, &mut liveness) {
            Beat::Wait(at) => at,
            Beat::Probe(_) => continue,
            Beat::Dead(_) => return LaneEnd::Silent,
        };
        out.clear();
        match transmit(shared, toll, now(), &mut out) {
            Turn::Wrote => {
                let written = async {
                    io.write_all(&out).await?;
                    io.flush().await
                };
                let mut written = std::pin::pin!(written);
                loop {
                    tokio::select! {
                        result = &mut written => match result {
                            Ok(()) => break,
                            Err(error) => return LaneEnd::Io(Arc::new(error)),
                        },
                        // A stream that takes nothing does not hide that the peer is gone.
                        () = tokio::time::sleep_until(look_at.into()) => match look(shared, &mut liveness) {
                            Beat::Wait(at) => look_at = at,
                            Beat::Probe(_) => {}
                            Beat::Dead(_) => return LaneEnd::Silent,
                        },
                    }
                }
            }
            Turn::Wait(at) => {
                let at = at.map_or(look_at, |at| at.min(look_at));
                tokio::select! {
                    () = shared.to_send.notified() => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                }
            }
        }
    }
}

/// Whether the peer is still there: whatever arrives says so, and a ping asks. On a reliable stream one ping under way
/// is enough, so that the next ones only count.
fn look(shared: &Shared, liveness: &mut Liveness) -> Beat {
    let now = now();
    shared.with(|state| {
        if let Some(heard_at) = state.heard_at.take() {
            liveness.answered(heard_at);
        }
        if std::mem::take(&mut state.suspected) {
            liveness.suspect(now);
        }
        // Where something is under way, somebody waits for it.
        let used = state.mux.channels() > 0 && state.pace.interval > Pace::USED.interval;
        liveness.set_pace(if used { Pace::USED } else { state.pace }, now);
        let beat = liveness.poll(state.mux.rtt().unwrap_or_default(), now);
        if matches!(beat, Beat::Probe(_)) {
            state.mux.ping(now);
        }
        beat
    })
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
