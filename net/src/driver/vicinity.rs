//! What is around this machine: its interfaces, its router, and nodes in the same network. Part of the driver's one task.

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tracing::info;

use super::local_discovery::{self, LocalDiscoveryConfig};
use super::port_mapping::{self, PortMapping, PortMappingConfig};
use super::{Driver, draw, now};
use crate::NetworkPrint;

impl Driver {
    pub(super) fn map_port(&mut self) {
        let sockets = self.quic.sockets();
        if let Some((_, local)) = sockets.iter().find(|(_, local)| local.is_ipv4()) {
            let mapping = port_mapping::map_port(
                local.port(),
                PortMappingConfig::default(),
                self.interfaces.clone(),
                &self.tracker,
                self.stop.clone(),
            );
            self.mapping = Some(mapping);
        }
    }

    pub(super) fn on_port_mapping(&mut self) {
        let mapped = self
            .mapping
            .as_mut()
            .and_then(|mapping| match *mapping.borrow_and_update() {
                PortMapping::Mapped { external, by } => {
                    info!(%external, %by, "the router forwards a port to this node");
                    Some(external)
                }
                PortMapping::Searching | PortMapping::Unavailable { .. } => None,
            });
        self.on_mapped(mapped, now());
    }

    pub(super) fn look_around(&mut self) {
        self.announced.send_replace(self.shared.listen());
        let neighbours = local_discovery::discover(
            self.shared.me,
            LocalDiscoveryConfig::default(),
            self.announced.subscribe(),
            self.interfaces.clone(),
            StdRng::from_seed(draw()),
            &self.tracker,
            self.stop.clone(),
        );
        self.neighbours = Some(neighbours);
    }

    pub(super) fn on_neighbours(&mut self) {
        let around = self
            .neighbours
            .as_mut()
            .map(|around| around.borrow_and_update().clone());
        let changed = self.shared.book().heard(&around.unwrap_or_default());
        for peer in changed {
            self.relearn(peer, now());
        }
    }

    pub(super) fn on_interfaces(&mut self) {
        let (print, ips) = {
            let interfaces = self.interfaces.borrow_and_update();
            let print = interfaces.fingerprint();
            let print = print.map(|print| NetworkPrint(print.short()));
            let ips: Vec<_> = interfaces
                .addresses
                .iter()
                .map(|address| address.addr())
                .collect();
            (print, ips)
        };
        self.on_network(print, ips, now());
    }
}
