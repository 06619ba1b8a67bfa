//! The networks that this machine is in: its addresses, the gateways it sends through, and a name for where it is
//! that stays the same when it comes back. Watches; decides nothing.
//!
//! Gateways are known on Linux and Android only, where the kernel lists them in files. Elsewhere a network is named
//! by its prefixes alone, which two homes may share.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt as _;
use if_watch::IpNet;
use if_watch::tokio::IfWatcher;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// How often routes are looked at: they can change while no address does, as when a router is replaced. Reading
/// them takes some 20 µs.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How long the system may take to list what is there; it takes about a millisecond. Only a machine without any
/// address, not even its own, waits for so long.
const FIRST_LOOK_MAX: Duration = Duration::from_millis(250);

/// Addresses that count: more than interfaces have, except on a machine that hosts thousands of others.
const ADDRESSES_MAX: usize = 256;

/// How much of a table of the kernel is read. Default routes come first.
const TABLE_MAX: u64 = 64 * 1024;

/// Where this machine is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Interfaces {
    /// Addresses with their prefixes, without those of this machine alone.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// Where IPv4 goes by default.
    pub(crate) gateway: Option<Gateway>,
    /// Where IPv6 goes by default.
    pub(crate) gateway_v6: Option<Gateway>,
}

/// A router that is the way out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Gateway {
    pub(crate) ip: IpAddr,
    /// Its address on the link, if the kernel has talked to it.
    pub(crate) mac: Option<Mac>,
}

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// A name for the network that this machine is in. It is a hash, so it tells nobody which network that is.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(crate) struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Enough of it to tell the networks of one machine apart.
    pub(crate) fn short(self) -> u64 {
        let [first, ..] = self.0.as_chunks::<8>().0 else {
            return 0;
        };
        u64::from_le_bytes(*first)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl Interfaces {
    /// The name of the network that leads out: the gateway and the prefix that it is in. Without a gateway, all
    /// prefixes; nothing when there is no network.
    ///
    /// Our address is not part of it, since the next lease, or IPv6's privacy, may give another; nor are networks
    /// beside it, such as those of containers, which come and go.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        let mut prefixes: BTreeSet<IpNet> = self.addresses.iter().map(IpNet::trunc).collect();
        if prefixes.is_empty() {
            return None;
        }
        let mut hasher = blake3::Hasher::new_derive_key("lapwing 2026 network fingerprint");
        if let Some(Gateway { ip, mac }) = self.gateway.or(self.gateway_v6) {
            hasher.update(ip.to_string().as_bytes());
            hasher.update(mac.as_ref().map_or(&[], Mac::as_slice));
            match prefixes.iter().find(|prefix| prefix.contains(&ip)) {
                Some(prefix) => prefixes = BTreeSet::from([*prefix]),
                // A router of IPv6 is known by an address of the link alone.
                None => prefixes.retain(|prefix| prefix.addr().is_ipv6() == ip.is_ipv6()),
            }
        }
        for prefix in prefixes {
            hasher.update(b"\n");
            hasher.update(prefix.to_string().as_bytes());
        }
        let mut name = [0; 16];
        hasher.finalize_xof().fill(&mut name);
        Some(Fingerprint(name))
    }

    /// Our own address in the network of a gateway.
    pub(crate) fn beside(&self, gateway: IpAddr) -> Option<IpAddr> {
        let net = self.addresses.iter().find(|net| net.contains(&gateway))?;
        Some(net.addr())
    }

    /// Keeps the link address of a gateway that the kernel has forgotten for the moment: the network is the same.
    fn remember(&mut self, before: &Self) {
        for (now, before) in [
            (&mut self.gateway, before.gateway),
            (&mut self.gateway_v6, before.gateway_v6),
        ] {
            if let (Some(now), Some(before)) = (now, before)
                && now.mac.is_none()
                && now.ip == before.ip
            {
                now.mac = before.mac;
            }
        }
    }
}

/// Watches the networks of this machine until it is told to stop. The receiver's first value is the present.
///
/// # Errors
/// When the system does not tell of its addresses.
pub(crate) async fn watch_interfaces(
    tracker: &TaskTracker,
    stop: CancellationToken,
) -> io::Result<watch::Receiver<Interfaces>> {
    let mut watcher = IfWatcher::new()?;
    // The first event says that what is there already has been listed.
    let _ = tokio::time::timeout(FIRST_LOOK_MAX, watcher.next()).await;
    let (sender, receiver) = watch::channel(look(&mut watcher).await);
    tracker.spawn(async move {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watching = true;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = watcher.next(), if watching => {
                    if let Some(Err(error)) = event {
                        warn!(%error, "changes of this machine's addresses are no longer seen");
                        watching = false;
                    }
                }
                _ = looks.tick() => (),
            }
            let mut present = look(&mut watcher).await;
            sender.send_if_modified(|known| {
                present.remember(known);
                let changed = *known != present;
                if changed {
                    let network = present.fingerprint().map(tracing::field::display);
                    debug!(
                        network,
                        addresses = present.addresses.len(),
                        "the networks of this machine changed"
                    );
                    *known = present;
                }
                changed
            });
        }
    });
    Ok(receiver)
}

async fn look(watcher: &mut IfWatcher) -> Interfaces {
    // Take what has happened since; the watcher's table then is the present.
    while let Some(Some(Ok(_))) = futures::FutureExt::now_or_never(Pin::new(&mut *watcher).next()) {}
    let addresses = watcher.iter().filter(|net| is_of_a_network(net.addr()));
    Interfaces {
        addresses: addresses.copied().take(ADDRESSES_MAX).collect(),
        gateway: gateway().await,
        gateway_v6: gateway_v6().await,
    }
}

/// Whether an address is of a network, and not of this machine or one wire alone.
fn is_of_a_network(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}

async fn gateway() -> Option<Gateway> {
    let ip = default_route(&table("/proc/net/route").await?)?;
    let neighbours = table("/proc/net/arp").await.unwrap_or_default();
    Some(Gateway {
        ip: ip.into(),
        mac: link_address(&neighbours, ip),
    })
}

async fn gateway_v6() -> Option<Gateway> {
    let ip = default_route_v6(&table("/proc/net/ipv6_route").await?)?;
    Some(Gateway {
        ip: ip.into(),
        mac: None,
    })
}

#[cfg(any(target_os = "android", target_os = "linux"))]
async fn table(file: &str) -> Option<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(file).await.ok()?;
    file.take(TABLE_MAX).read_to_string(&mut text).await.ok()?;
    Some(text)
}

#[cfg(not(any(target_os = "android", target_os = "linux")))]
async fn table(_: &str) -> Option<String> {
    None
}

/// The gateway of the default route that the kernel prefers, from `/proc/net/route`.
fn default_route(table: &str) -> Option<Ipv4Addr> {
    // RTF_UP and RTF_GATEWAY of `route.h`.
    const FLAGS: u32 = 0x3;
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[_, destination, gateway, flags, _, _, metric, mask, ..] = fields.as_slice() else {
            return None;
        };
        let number = |field| u32::from_str_radix(field, 16).ok();
        let is_default = number(destination)? == 0 && number(mask)? == 0 && number(flags)? & FLAGS == FLAGS;
        // Written as the machine holds it in memory.
        let gateway = Ipv4Addr::from(number(gateway)?.to_ne_bytes());
        is_default.then_some((metric.parse::<u32>().ok()?, gateway))
    });
    routes
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, gateway)| gateway)
}

/// The same from `/proc/net/ipv6_route`.
fn default_route_v6(table: &str) -> Option<Ipv6Addr> {
    let routes = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[destination, prefix, _, _, gateway, metric, ..] = fields.as_slice() else {
            return None;
        };
        let address = |field| u128::from_str_radix(field, 16).ok();
        let is_default = address(destination)? == 0 && prefix == "00";
        let gateway = Ipv6Addr::from(address(gateway)?);
        let metric = u32::from_str_radix(metric, 16).ok()?;
        (is_default && !gateway.is_unspecified()).then_some((metric, gateway))
    });
    routes
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, gateway)| gateway)
}

/// A neighbour's address on the link, from `/proc/net/arp`.
fn link_address(table: &str, ip: Ipv4Addr) -> Option<Mac> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[address, _, _, mac, ..] = fields.as_slice() else {
            return None;
        };
        if address.parse() != Ok(ip) {
            return None;
        }
        let bytes: Result<Vec<u8>, _> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        let mac: Mac = bytes.ok()?.try_into().ok()?;
        // All zero while the kernel still asks.
        (mac != [0; 6]).then_some(mac)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
             wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let gateway = default_route(routes);
        #[cfg(target_endian = "little")]
        assert_eq!(gateway, Some([192, 0, 2, 1].into()));
        let neighbours = "IP address       HW type     Flags       HW address            Mask     Device\n\
             192.0.2.7        0x1         0x0         00:00:00:00:00:00     *        eth0\n\
             192.0.2.1        0x1         0x2         02:fc:00:00:00:05     *        eth0\n";
        assert_eq!(
            link_address(neighbours, [192, 0, 2, 1].into()),
            Some([2, 0xfc, 0, 0, 0, 5])
        );
        assert_eq!(link_address(neighbours, [192, 0, 2, 7].into()), None);
        let zero = "0".repeat(32);
        let routes = format!(
            "fe800000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000002 00000000 00000001 eth0\n\
             {zero} 00 {zero} 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003 eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(default_route_v6(&routes), Some("fd00::1".parse().unwrap()));
    }

    #[test]
    fn tables_of_another_form_tell_nothing() {
        for table in ["", "\n\n", "a b c d e f g h i", "x\n1 zz zz zz zz zz zz zz\n"] {
            assert_eq!(default_route(table), None);
            assert_eq!(default_route_v6(table), None);
            assert_eq!(link_address(table, [192, 0, 2, 1].into()), None);
        }
    }

    #[test]
    fn a_network_keeps_its_name_when_only_our_address_in_it_changes() {
        let home = at("192.168.1.7/24", Some([2, 0, 0, 0, 0, 1]));
        let again = at("192.168.1.99/24", Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(home.fingerprint().unwrap(), again.fingerprint().unwrap());
    }

    #[test]
    fn networks_beside_the_one_that_leads_out_do_not_change_its_name() {
        let alone = at("192.168.1.7/24", None);
        let mut with_containers = alone.clone();
        for net in ["172.17.0.1/16", "fd00::2/64"] {
            with_containers.addresses.insert(net.parse().unwrap());
        }
        assert_eq!(alone.fingerprint(), with_containers.fingerprint());
    }

    #[test]
    fn a_network_of_ipv6_alone_has_a_name() {
        let mut there = Interfaces::default();
        there.addresses.insert("2001:db8::7/64".parse().unwrap());
        let without_gateway = there.fingerprint().unwrap();
        there.gateway_v6 = Some(Gateway {
            ip: "fe80::1".parse().unwrap(),
            mac: None,
        });
        assert_ne!(there.fingerprint().unwrap(), without_gateway);
    }

    #[test]
    fn two_homes_with_the_same_prefix_have_different_names() {
        let home = at("192.168.1.7/24", Some([2, 0, 0, 0, 0, 1]));
        let other = at("192.168.1.7/24", Some([2, 0, 0, 0, 0, 2]));
        assert_ne!(home.fingerprint(), other.fingerprint());
        assert_eq!(Interfaces::default().fingerprint(), None);
    }

    #[test]
    fn a_gateway_that_the_kernel_forgets_for_a_while_is_the_same() {
        let home = at("192.168.1.7/24", Some([2, 0, 0, 0, 0, 1]));
        let mut later = at("192.168.1.7/24", None);
        later.remember(&home);
        assert_eq!(later, home);
    }

    #[test]
    fn our_address_beside_a_gateway_is_found() {
        let home = at("192.168.1.7/24", None);
        let gateway = home.gateway.unwrap().ip;
        assert_eq!(home.beside(gateway), Some("192.168.1.7".parse().unwrap()));
        assert_eq!(home.beside("10.0.0.1".parse().unwrap()), None);
    }

    #[tokio::test]
    async fn the_present_is_known_at_once_and_the_watch_ends_when_told() {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let interfaces = watch_interfaces(&tracker, stop.clone()).await.unwrap();
        assert!(
            interfaces
                .borrow()
                .addresses
                .iter()
                .all(|net| !net.addr().is_loopback())
        );
        stop.cancel();
        tracker.close();
        tokio::time::timeout(Duration::from_secs(5), tracker.wait())
            .await
            .unwrap();
        assert!(interfaces.has_changed().is_err());
    }

    fn at(address: &str, mac: Option<Mac>) -> Interfaces {
        Interfaces {
            addresses: BTreeSet::from([address.parse().unwrap()]),
            gateway: Some(Gateway {
                ip: "192.168.1.1".parse().unwrap(),
                mac,
            }),
            gateway_v6: None,
        }
    }
}
