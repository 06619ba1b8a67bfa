//! The task that reads a lane's stream: everything at once, for all channels. It waits for none of them.

use std::io;
use std::sync::Arc;
use std::task::Waker;

use futures::io::{AsyncRead, AsyncReadExt as _, ReadHalf};
use tokio::sync::mpsc;
use tracing::debug;

use super::shared::{LaneEnd, Shared, now};
use super::stream::LaneStream;
use crate::{LaneError, LaneEvent};
use lapwing_base::Class;

/// What is read at once: a few slices, and what a kernel hands over in one go.
const READ_MAX: usize = 64 << 10;

pub(super) async fn run<T: AsyncRead>(
    mut io: ReadHalf<T>,
    shared: Arc<Shared>,
    opened: mpsc::Sender<(Class, LaneStream)>,
) {
    let stop = shared.stop.clone();
    let end = stop.run_until_cancelled(read(&mut io, &shared, &opened)).await;
    let end = end.unwrap_or(LaneEnd::Stopped);
    debug!(%end, "lane ended");
    shared.end(end);
}

async fn read<T: AsyncRead>(
    io: &mut ReadHalf<T>,
    shared: &Arc<Shared>,
    opened: &mpsc::Sender<(Class, LaneStream)>,
) -> LaneEnd {
    let mut buffer = vec![0; READ_MAX];
    loop {
        match io.read(&mut buffer).await {
            Ok(0) => return LaneEnd::Closed,
            Ok(read) => {
                if let Err(error) = take_in(&buffer[..read], shared, opened) {
                    return LaneEnd::Misbehaved(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return LaneEnd::Io(Arc::new(error)),
        }
    }
}

fn take_in(
    bytes: &[u8],
    shared: &Arc<Shared>,
    opened: &mpsc::Sender<(Class, LaneStream)>,
) -> Result<(), LaneError> {
    let mut channels = Vec::new();
    let mut wakers = Vec::new();
    let taken = shared.with(|state| {
        let now = now();
        state.heard_at = Some(now);
        let mut events = Vec::new();
        let taken = state.mux.receive(bytes, now, &mut |event| events.push(event));
        for event in events {
            match event {
                LaneEvent::Opened(channel, class) => channels.push((channel, class)),
                LaneEvent::Readable(_) | LaneEvent::Writable(_) => wakers.extend(state.waiting_for(event)),
            }
        }
        taken
    });
    wakers.into_iter().for_each(Waker::wake);
    for (channel, class) in channels {
        let stream = LaneStream::new(Arc::clone(shared), channel, class);
        // Dropped, and so refused, where nobody takes channels any more; never for lack of room.
        drop(opened.try_send((class, stream)));
    }
    // At least an acknowledgement is due.
    shared.to_send.notify_one();
    taken
}
