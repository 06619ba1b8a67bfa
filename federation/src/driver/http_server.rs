//! Takes connections of HTTP and hands what they ask to a router. Bounds what one caller can take from others: a connection
//! that asks for nothing makes room for one that comes. What a connection becomes that is asked to be something else, whoever
//! has agreed to that has to bound.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::now;

/// Connections at a time: twice the calls that the edge has in hand, so that of more a caller is told, and does not wait.
const CONNECTIONS_MAX: usize = 4_096;

/// In which the head of a request comes, also that of the next one of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a caller may leave its answer unread: then its connection is closed.
#[cfg(target_os = "linux")]
const UNREAD_FOR: Duration = Duration::from_secs(15);

/// Bytes of a head, cookies of a proxy in front included.
const BUFFER_MAX: usize = 64 * 1024;

/// How long the end of an answer may take to be written where another connection needs the place.
const UNWRITTEN_FOR: Duration = Duration::from_secs(1);

/// In which an answer is written that takes from what others have: 16 MiB over the slowest links that matter. Somebody who reads
/// a little now and then would keep it for ever.
const WRITTEN_WITHIN: Duration = super::calls::TELL_TIMEOUT;

/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(15);

/// How long requests in hand may take once the server stops.
const DRAIN: Duration = Duration::from_secs(30);

/// Pause after a failed accept: without free file descriptors it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then lets what is in hand end.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    serve_at_most(CONNECTIONS_MAX, listener, router, stop).await;
}

async fn serve_at_most(most: usize, listener: TcpListener, router: Router, stop: CancellationToken) {
    let places = Places::new(most);
    let connections = TaskTracker::new();
    let mut is_failing = false;
    loop {
        let next = async {
            let accepted = listener.accept().await;
            let place = Places::take(&places).await;
            (place, accepted)
        };
        let Some((place, accepted)) = stop.run_until_cancelled(next).await else {
            break;
        };
        match accepted {
            Ok((stream, _)) => {
                is_failing = false;
                connections.spawn(converse(stream, router.clone(), place, stop.clone()));
            }
            Err(error) => {
                // Where there are no file descriptors left, one that asks for nothing gives up its own.
                lock(&places.idle).ask_one();
                // Told once: without free file descriptors every attempt fails until one is closed.
                if !std::mem::replace(&mut is_failing, true) {
                    warn!(%error, "could not accept a connection");
                }
                stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Who has a place among the connections.
#[derive(Debug)]
struct Places {
    free: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

/// The connections that ask for nothing.
#[derive(Debug, Default)]
struct Idle {
    came: u64,
    /// The longest idle first; who is asked to go is taken out.
    connections: BTreeMap<u64, Arc<Notify>>,
    /// Somebody waits for a place.
    is_waited_for: bool,
    /// The next one to become idle is to go.
    is_wanted: bool,
}

/// One connection's.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    /// Told when it may have been asked to go.
    asked: Arc<Notify>,
    /// Where it is among the idle ones, and when its last answer ended, if it has had any.
    idle: Mutex<Option<(u64, Option<Instant>)>>,
    /// An answer that takes from what others have, since when it is written.
    unwritten: Mutex<Option<(Unwritten, Instant)>>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Says of an answer, as an extension of it, whether it is still held here: for one that takes from what others have.
#[derive(Clone, Debug)]
pub(super) struct Unwritten(Weak<dyn Any + Send + Sync>);

impl Unwritten {
    /// Until nobody has this any more.
    pub(super) fn new<T: Any + Send + Sync>(held: &Arc<T>) -> Self {
        let held: Weak<T> = Arc::downgrade(held);
        Self(held)
    }

    fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// A request in hand, until its answer is written.
#[derive(Debug)]
struct Busy(Arc<Place>);

impl Places {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(most)),
            idle: Mutex::default(),
        })
    }

    /// A free one; where there is none, that of the connection that has been idle for longest, or of the next to be idle.
    async fn take(places: &Arc<Self>) -> Arc<Place> {
        // Nobody closes the semaphore, so that a permit is never refused.
        let permit = match Arc::clone(&places.free).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                lock(&places.idle).is_waited_for = true;
                lock(&places.idle).ask_one();
                let permit = Arc::clone(&places.free).acquire_owned().await.ok();
                let mut idle = lock(&places.idle);
                (idle.is_waited_for, idle.is_wanted) = (false, false);
                permit
            }
        };
        let place = Arc::new(Place {
            places: Arc::clone(places),
            asked: Arc::default(),
            idle: Mutex::default(),
            unwritten: Mutex::default(),
            _permit: permit,
        });
        place.rest(None);
        place
    }
}

impl Idle {
    fn ask_one(&mut self) {
        match self.connections.pop_first() {
            Some((_, asked)) => asked.notify_one(),
            None => self.is_wanted = self.is_waited_for,
        }
    }
}

impl Place {
    /// It asks for nothing from now on.
    fn rest(&self, answered_at: Option<Instant>) {
        let mut idle = lock(&self.places.idle);
        idle.came += 1;
        *lock(&self.idle) = Some((idle.came, answered_at));
        if std::mem::take(&mut idle.is_wanted) {
            self.asked.notify_one();
        } else {
            let at = idle.came;
            idle.connections.insert(at, Arc::clone(&self.asked));
        }
    }

    /// It is not asked to go from now on, and if it has just been, another one is.
    fn leave_idle(&self) {
        let mut idle = lock(&self.places.idle);
        let was = lock(&self.idle).take();
        let was_asked = was.is_some_and(|(at, _)| idle.connections.remove(&at).is_none());
        if was_asked && idle.is_waited_for {
            idle.ask_one();
        }
    }

    /// From now on this is written, and what came before it, where that is not gone.
    fn writes(&self, unwritten: Unwritten) {
        let mut held = lock(&self.unwritten);
        if !held.as_ref().is_some_and(|(before, _)| before.is_held()) {
            *held = Some((unwritten, now()));
        }
    }

    /// Ends when an answer takes too long to be written.
    async fn is_stuck(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let held = lock(&self.unwritten);
            let is_long = |since: &Instant| now().saturating_duration_since(*since) >= WRITTEN_WITHIN;
            if held
                .as_ref()
                .is_some_and(|(unwritten, since)| unwritten.is_held() && is_long(since))
            {
                return;
            }
        }
    }

    /// How long its last answer may still take to be written, once it has to go.
    async fn has_to_go(&self) -> Duration {
        loop {
            self.asked.notified().await;
            let idle = lock(&self.places.idle);
            let is = *lock(&self.idle);
            if let Some((_, answered_at)) = is.filter(|(at, _)| !idle.connections.contains_key(at)) {
                let unwritten = |at| UNWRITTEN_FOR.saturating_sub(now().saturating_duration_since(at));
                return answered_at.map_or(Duration::ZERO, unwritten);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let at = lock(&self.idle).take();
        if let Some((at, _)) = at {
            lock(&self.places.idle).connections.remove(&at);
        }
    }
}

impl Busy {
    fn new(place: &Arc<Place>) -> Self {
        place.leave_idle();
        Self(Arc::clone(place))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.rest(Some(now()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, until its caller or the server ends it.
async fn converse(stream: TcpStream, router: Router, place: Arc<Place>, stop: CancellationToken) {
    // Answers are single small writes that somebody waits for.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "could not disable Nagle's algorithm");
    }
    // Elsewhere a caller that never reads keeps its connection.
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_FOR)) {
        debug!(%error, "could not bound how long answers stay unread");
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_MAX);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let (busy, answer) = (Busy::new(&place), router.call(request));
        let place = Arc::clone(&place);
        async move {
            let mut answer = answer.await?;
            if let Some(unwritten) = answer.extensions_mut().remove() {
                place.writes(unwritten);
            }
            Ok::<_, std::convert::Infallible>(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _kept = &busy;
                    frame
                }))
            }))
        }
    });
    let mut connection = std::pin::pin!(
        builder
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Ok(ended),
        patience = place.has_to_go() => Err(patience),
        () = place.is_stuck() => return debug!("an answer was not read in time"),
        () = stop.cancelled() => Err(DRAIN),
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(patience) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(patience, connection).await {
                Ok(ended) => ended,
                Err(_) => return debug!("a connection did not end in time"),
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n";

    /// A server of two connections at a time, whose answers to `/` wait until they may come.
    struct Serving {
        at: std::net::SocketAddr,
        may_come: Arc<Semaphore>,
        _tasks: tokio::task::JoinSet<()>,
    }

    async fn serving() -> Serving {
        let (may_come, stop) = (Arc::new(Semaphore::new(0)), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let gate = Arc::clone(&may_come);
        let answer = move || {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                "here"
            }
        };
        let router = Router::new().route("/", get(answer));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(serve_at_most(2, listener, router, stop));
        Serving {
            at,
            may_come,
            _tasks: tasks,
        }
    }

    /// What comes until the other side says no more for now.
    async fn read(stream: &mut TcpStream) -> String {
        let mut text = vec![0; 1024];
        let read = tokio::time::timeout(SOON, stream.read(&mut text)).await.unwrap();
        String::from_utf8_lossy(&text[..read.unwrap_or(0)]).into_owned()
    }

    #[tokio::test]
    async fn the_longest_idle_connection_makes_room_for_one_that_comes() {
        let Serving { at, may_come, _tasks } = serving().await;
        let mut first = TcpStream::connect(at).await.unwrap();
        let mut second = TcpStream::connect(at).await.unwrap();
        may_come.add_permits(2);
        for stream in [&mut first, &mut second] {
            stream.write_all(ASK).await.unwrap();
            assert!(read(stream).await.ends_with("here"));
        }
        let mut third = TcpStream::connect(at).await.unwrap();
        third.write_all(ASK).await.unwrap();
        may_come.add_permits(1);
        assert!(read(&mut third).await.ends_with("here"));
        assert_eq!(read(&mut first).await, "", "it has been idle for longer");
        second.write_all(ASK).await.unwrap();
        may_come.add_permits(1);
        assert!(read(&mut second).await.ends_with("here"));
    }

    #[tokio::test]
    async fn half_a_head_keeps_nobody_out() {
        let Serving { at, may_come, _tasks } = serving().await;
        let mut slow = Vec::new();
        for _ in 0..8 {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(&ASK[..10]).await.unwrap();
            slow.push(stream);
        }
        may_come.add_permits(1);
        let mut other = TcpStream::connect(at).await.unwrap();
        other.write_all(ASK).await.unwrap();
        assert!(read(&mut other).await.ends_with("here"));
    }

    #[tokio::test]
    async fn a_request_in_hand_is_answered_before_its_connection_makes_room() {
        let Serving { at, may_come, _tasks } = serving().await;
        let mut busy = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(ASK).await.unwrap();
            busy.push(stream);
        }
        let mut third = TcpStream::connect(at).await.unwrap();
        third.write_all(ASK).await.unwrap();
        may_come.add_permits(3);
        for stream in busy.iter_mut().chain([&mut third]) {
            assert!(read(stream).await.ends_with("here"));
        }
    }
}
