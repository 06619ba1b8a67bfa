//! Three mains that know each other, with two homes each, all of which offer the service `diary`: alice and bob at relay-a,
//! charlie and dora at relay-b, erin and frank at relay-c. For tests that change nothing of it.

use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use crate::backend::Backend;
use crate::world::{World, free_port};

pub(crate) const MAINS: [(&str, [&str; 2]); 3] = [
    ("relay-a", ["alice", "bob"]),
    ("relay-b", ["charlie", "dora"]),
    ("relay-c", ["erin", "frank"]),
];

pub(crate) struct Nine {
    pub(crate) world: World,
    backends: Vec<Backend>,
}

impl Nine {
    /// The world that other tests have now, or else another one.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Nine>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(nine) = shared.upgrade() {
            return nine;
        }
        let nine = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&nine);
        nine
    }

    async fn start() -> Self {
        let mut world = World::new();
        let ports = MAINS.map(|_| free_port());
        let mut backends = Vec::new();
        for (place, (main, homes)) in MAINS.into_iter().enumerate() {
            let peers: Vec<u16> = ports
                .iter()
                .copied()
                .filter(|port| *port != ports[place])
                .collect();
            world.main(main, ports[place], &peers, &[]);
            for home in homes {
                let backend = Backend::start(home);
                world.home(home, &[ports[place]], &[&backend.as_service("diary")]);
                backends.push(backend);
            }
        }
        world.up().await;
        let homes: Vec<&str> = MAINS.iter().flat_map(|(_, homes)| *homes).collect();
        for (main, _) in MAINS {
            world.until_offered(main, "diary", &homes).await;
        }
        for home in &homes {
            world.until_offered(home, "diary", &homes).await;
        }
        Self { world, backends }
    }

    /// How many calls the services of all homes have had.
    pub(crate) fn calls(&self) -> u64 {
        self.backends.iter().map(Backend::calls).sum()
    }
}
