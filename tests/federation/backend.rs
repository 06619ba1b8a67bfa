//! A service in the test's own process, on a thread of its own: it says who it is and what it was told, counts what it carried
//! out, and fails or takes its time when it is asked to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use lapwing_netlab::Host;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::world::eventually;

/// A service that answers JSON-RPC over HTTP until it is dropped.
pub(crate) struct Backend {
    /// What `--service` is given behind the name.
    pub(crate) url: String,
    told: Arc<Told>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What it is asked to do, and what it has done.
#[derive(Default)]
struct Told {
    name: String,
    is_failing: AtomicBool,
    /// Of so many calls one fails; 0 for none.
    fails_one_in: AtomicU64,
    delay_ms: AtomicU64,
    calls: AtomicU64,
    /// How often a call was carried out, by the number that is its first argument.
    carried_out: Mutex<BTreeMap<u64, u32>>,
}

impl Backend {
    pub(crate) fn start(name: &str) -> Self {
        Self::on_thread(name, std::thread::spawn)
    }

    /// On a host of a laboratory, where its relay reaches it.
    pub(crate) fn start_on(host: &Host) -> Self {
        Self::on_thread(host.name(), |serving| host.spawn(serving).unwrap())
    }

    fn on_thread(name: &str, spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> JoinHandle<()>) -> Self {
        let told = Arc::new(Told {
            name: name.to_owned(),
            ..Told::default()
        });
        let stop = CancellationToken::new();
        let (addresses, address) = std::sync::mpsc::channel();
        let (told_of_thread, stop_of_thread) = (Arc::clone(&told), stop.clone());
        let thread = spawn(Box::new(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                addresses.send(listener.local_addr().unwrap()).unwrap();
                let router = Router::new()
                    .route("/rpc", post(answer))
                    .with_state(told_of_thread);
                let serving = axum::serve(listener, router).into_future();
                // Connections that relays keep open end with the runtime.
                let _ = stop_of_thread.run_until_cancelled(serving).await;
            });
        }));
        let url = format!("http://{}/rpc", address.recv().unwrap());
        Self {
            url,
            told,
            stop,
            thread: Some(thread),
        }
    }

    /// What a relay is given to offer it.
    pub(crate) fn as_service(&self, name: &str) -> String {
        format!("--service={name}={}", self.url)
    }

    pub(crate) fn fail(&self, is_failing: bool) {
        self.told.is_failing.store(is_failing, Ordering::Relaxed);
    }

    pub(crate) fn fail_one_in(&self, count: u64) {
        self.told.fails_one_in.store(count, Ordering::Relaxed);
    }

    pub(crate) fn take(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap();
        self.told.delay_ms.store(delay, Ordering::Relaxed);
    }

    /// Waits until it was called so often.
    pub(crate) async fn until_called(&self, times: u64) {
        eventually(&format!("{} to be called", self.told.name), async || {
            match self.calls() {
                calls if calls >= times => Ok(()),
                calls => Err(calls.to_string()),
            }
        })
        .await;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.told.calls.load(Ordering::Relaxed)
    }

    /// How often each numbered call was carried out.
    pub(crate) fn carried_out(&self) -> BTreeMap<u64, u32> {
        self.told.carried_out.lock().unwrap().clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Where it has panicked, that was said already.
            let _ = thread.join();
        }
    }
}

async fn answer(State(told): State<Arc<Told>>, Json(request): Json<Value>) -> Json<Value> {
    // Before it is counted: whoever sees the count may ask for another delay of those that follow.
    let delay = Duration::from_millis(told.delay_ms.load(Ordering::Relaxed));
    let count = told.calls.fetch_add(1, Ordering::Relaxed) + 1;
    let arguments = &request["params"];
    if let Some(number) = arguments[0].as_u64() {
        *told.carried_out.lock().unwrap().entry(number).or_default() += 1;
    }
    tokio::time::sleep(delay).await;
    let one_in = told.fails_one_in.load(Ordering::Relaxed);
    let fails = told.is_failing.load(Ordering::Relaxed) || (one_in > 0 && count.is_multiple_of(one_in));
    Json(if fails {
        let error = json!({ "code": -32603, "message": "out of order" });
        json!({ "jsonrpc": "2.0", "id": request["id"], "error": error })
    } else {
        let result = json!({ "by": told.name, "args": arguments });
        json!({ "jsonrpc": "2.0", "id": request["id"], "result": result })
    })
}
