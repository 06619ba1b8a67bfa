//! A small internet with mains on public hosts and homes behind routers, ready to be disturbed.

use std::time::Duration;

use lapwing_base::Role;
use lapwing_netlab::{Host, Lab, Nat, Router, Shape};

use crate::nodes::{LabNode, enrol, eventually, refresh};

pub(crate) const ANY: &str = "/ip4/0.0.0.0/udp/0/quic-v1";
const MAIN: &str = "/ip4/0.0.0.0/udp/4001/quic-v1";
const WEB: &str = "/ip4/0.0.0.0/tcp/443/tls/ws";

/// From a home to the internet, one way.
pub(crate) const DELAY: Duration = Duration::from_millis(10);

/// A home finds relays, and what stands before it.
const SETTLED: Duration = Duration::from_secs(40);

/// Mains and homes of one cluster. Nodes end before their laboratory.
pub(crate) struct World {
    pub(crate) mains: Vec<LabNode>,
    pub(crate) main_hosts: Vec<Host>,
    pub(crate) homes: Vec<LabNode>,
    pub(crate) home_hosts: Vec<Host>,
    pub(crate) routers: Vec<Router>,
    _lab: Lab,
}

impl World {
    /// So many mains, and a home behind each of these routers; nobody knows anybody yet.
    pub(crate) fn new(mains: usize, nats: &[Nat]) -> Self {
        let lab = Lab::builder().seed(7).start().unwrap();
        let main_hosts: Vec<_> = (1..=mains)
            .map(|number| lab.public_host(&format!("relay-{number}")).unwrap())
            .collect();
        let mains = main_hosts
            .iter()
            .map(|host| LabNode::start(host, Some(Role::Main), &[MAIN, WEB]))
            .collect();
        let mut world = Self {
            mains,
            main_hosts,
            homes: Vec::new(),
            home_hosts: Vec::new(),
            routers: Vec::new(),
            _lab: lab,
        };
        for (number, nat) in nats.iter().enumerate() {
            let name = char::from(b'a' + u8::try_from(number).unwrap());
            let router = world._lab.router(&format!("nat-{name}"), nat.clone()).unwrap();
            router.link().shape(Shape::delayed(DELAY)).unwrap();
            let host = router.host(&name.to_string()).unwrap();
            world.homes.push(LabNode::start(&host, None, &[ANY]));
            world.home_hosts.push(host);
            world.routers.push(router);
        }
        world
    }

    /// The same, once everybody knows everybody and every home can be reached.
    pub(crate) fn settled(mains: usize, nats: &[Nat]) -> Self {
        let world = Self::new(mains, nats);
        enrol(&world.mains, &world.homes);
        for home in &world.homes {
            eventually(&format!("{} can be reached", home.name), SETTLED, || {
                let reach = home.reach();
                !reach.standing.provisional
                    && (reach.standing.role == Role::Main || reach.reservations.len() == mains.min(2))
            });
        }
        world.refresh();
        world
    }

    /// Tells everybody where everybody is now.
    pub(crate) fn refresh(&self) {
        refresh(&self.mains, &self.homes);
    }
}
