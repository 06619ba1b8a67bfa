//! The firewall of a router, written in nftables' language. Pure: text out of values.
//!
//! The kernel's connection tracking is symmetric where ports are drawn per flow and endpoint-independent where they
//! are kept or hashed from the inside end; what it lacks is filtering that is looser than address and port. So a
//! chain after translation learns which inside socket an outside port belongs to (`mapped`) and whom it has sent
//! to (`contacted`), and packets from outside that belong to no flow are looked up there.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::nat::{Egress, Filtering, Ipv6, Mapping, Nat, Ports, Sequence};

/// Ports of a sequence before it starts again: each is a line for the kernel, and no test counts further.
const SEQUENCE_MAX: usize = 4_096;

/// The rules of a router whose device to the outside is `wan` and has the address `outside`, and whose device to
/// its hosts is `lan`. Another `seed` hashes to other ports.
pub(crate) fn ruleset(nat: &Nat, outside: Ipv4Addr, seed: u32) -> String {
    let mut rules = String::new();
    // Declared, deleted and declared again: the one way to replace a table that works whether or not it exists,
    // and all of it is one transaction.
    for family in ["ip", "ip6"] {
        let _ = writeln!(rules, "table {family} netlab\ndelete table {family} netlab");
    }
    let lifetime = nat.lifetime.as_secs();
    let _ = write!(
        rules,
        "table ip netlab {{
 map mapped {{ type inet_service : ipv4_addr . inet_service; size 65535; flags dynamic,timeout; timeout {lifetime}s; }}
 set contacted {{ type ipv4_addr . ipv4_addr . inet_service; size 65535; flags dynamic,timeout; timeout {lifetime}s; }}
 chain before {{ type nat hook prerouting priority dstnat; policy accept;
"
    );
    let translates = nat.mapping != Mapping::None;
    if translates && nat.filtering != Filtering::AddressAndPort {
        rules.push_str("  iifname \"wan\" meta l4proto udp dnat to udp dport map @mapped\n");
    }
    if nat.hairpin {
        let _ = writeln!(
            rules,
            "  iifname \"lan\" ip daddr {outside} meta l4proto udp dnat to udp dport map @mapped"
        );
    }
    rules.push_str(" }\n");
    if translates {
        // One chain for both ways, so that a sequence counts on in one place. Hairpin's source is the outside address
        // too, as RFC 4787 asks (REQ-9).
        rules.push_str(&translation(nat, outside, seed));
        let _ = write!(
            rules,
            " chain after {{ type nat hook postrouting priority srcnat; policy accept;
  iifname \"lan\" oifname \"lan\" ct status dnat meta l4proto udp jump translate
  iifname \"lan\" oifname \"wan\" meta l4proto udp jump translate
  iifname \"lan\" oifname \"wan\" snat to {outside}
 }}
"
        );
    }
    rules.push_str(" chain learn { type filter hook postrouting priority 110; policy accept;\n");
    // A flow that began inside has the inside socket as its origin; one that came in answers from it.
    for (direction, inside) in [
        ("original", "ct original ip saddr . ct original proto-src"),
        ("reply", "ct reply ip saddr . ct reply proto-src"),
    ] {
        let _ = writeln!(
            rules,
            "  iifname \"lan\" oifname \"wan\" meta l4proto udp ct direction {direction} update @mapped {{ udp sport timeout {lifetime}s : {inside} }}
  iifname \"lan\" oifname \"wan\" meta l4proto udp ct direction {direction} update @contacted {{ ip daddr . {inside} timeout {lifetime}s }}"
        );
    }
    if nat.hairpin {
        let _ = writeln!(
            rules,
            "  iifname \"lan\" oifname \"lan\" meta l4proto udp ct status dnat ct direction original update @mapped {{ udp sport timeout {lifetime}s : ct original ip saddr . ct original proto-src }}"
        );
    }
    rules.push_str(" }\n chain through { type filter hook forward priority filter; policy drop;\n");
    rules.push_str(egress(nat.egress));
    rules.push_str("  iifname \"lan\" accept\n  ct state established,related accept\n");
    match nat.filtering {
        Filtering::EndpointIndependent if translates => {
            rules.push_str("  iifname \"wan\" ct status dnat accept\n");
        }
        Filtering::EndpointIndependent => rules.push_str("  iifname \"wan\" accept\n"),
        Filtering::Address => rules.push_str(
            "  iifname \"wan\" meta l4proto udp ip saddr . ip daddr . udp dport @contacted accept\n",
        ),
        Filtering::AddressAndPort => (),
    }
    rules.push_str(" }\n");
    rules.push_str(&input(nat.accepts_input));
    rules.push_str(
        "}\ntable ip6 netlab {\n chain through { type filter hook forward priority filter; policy drop;\n",
    );
    rules.push_str(egress(nat.egress));
    match nat.ipv6 {
        Ipv6::Off => (),
        Ipv6::Firewalled => rules.push_str(
            "  iifname \"lan\" accept\n  ct state established,related accept\n  meta l4proto ipv6-icmp accept\n",
        ),
        Ipv6::Open => rules.push_str("  accept\n"),
    }
    rules.push_str(" }\n");
    rules.push_str(&input(nat.accepts_input));
    rules.push_str("}\n");
    rules
}

/// Drops for whatever arrives at a port of a switch or router: everything, or what goes to certain addresses.
pub(crate) fn barrier(device: &str, all: bool, to: &[std::net::IpAddr]) -> String {
    let table = format!("table netdev netlab_{device}");
    let mut rules = format!("{table}\ndelete {table}\n");
    if !all && to.is_empty() {
        return rules;
    }
    let _ = write!(
        rules,
        "{table} {{\n chain barrier {{ type filter hook ingress device \"{device}\" priority -300; policy accept;\n"
    );
    if all {
        rules.push_str("  drop\n");
    }
    for address in to {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        let _ = writeln!(rules, "  {family} daddr {address} drop");
    }
    rules.push_str(" }\n}\n");
    rules
}

/// The chain that translates a UDP packet on its way out.
///
/// nftables takes a computed port in the byte order of the machine for one in the byte order of the network: a hash
/// between 40,000 and 60,000 becomes a port anywhere. So the two bytes of a hashed port are computed apart, one by
/// the choice of a chain, and a sequence is looked up.
fn translation(nat: &Nat, outside: Ipv4Addr, seed: u32) -> String {
    let (first, last) = (*nat.ports.start(), *nat.ports.end());
    match nat.mapping {
        Mapping::None => String::new(),
        Mapping::EndpointIndependent(Ports::Preserved) => one_chain(&format!("snat to {outside}")),
        Mapping::EndpointIndependent(Ports::Translated) => hashed(nat, outside, seed, "ip saddr . udp sport"),
        Mapping::Symmetric(Sequence::Hashed) => {
            hashed(nat, outside, seed, "ip saddr . udp sport . ip daddr . udp dport")
        }
        Mapping::Symmetric(Sequence::Random) => {
            one_chain(&format!("snat to {outside}:{first}-{last} random"))
        }
        Mapping::Symmetric(Sequence::Sequential) => {
            let ports: Vec<_> = (first..=last)
                .take(SEQUENCE_MAX)
                .enumerate()
                .map(|(at, port)| format!("{at} : {port}"))
                .collect();
            let (count, ports) = (ports.len(), ports.join(", "));
            one_chain(&format!(
                "snat to {outside} : numgen inc mod {count} map {{ {ports} }}"
            ))
        }
    }
}

fn one_chain(rule: &str) -> String {
    format!(" chain translate {{ meta l4proto udp {rule}; }}\n")
}

fn hashed(nat: &Nat, outside: Ipv4Addr, seed: u32, of: &str) -> String {
    let (first, last) = (nat.ports.start() >> 8, nat.ports.end() >> 8);
    let mut chains = String::new();
    let mut choices = Vec::new();
    for (choice, high) in (first..=last).enumerate() {
        let _ = writeln!(
            chains,
            " chain high_{high} {{ meta l4proto udp snat to {outside} : jhash {of} mod 256 seed {seed:#x} << 8 | {high}; }}"
        );
        choices.push(format!("{choice} : goto high_{high}"));
    }
    let _ = writeln!(
        chains,
        " chain translate {{ meta l4proto udp jhash {of} mod {} seed {:#x} vmap {{ {} }}; }}",
        choices.len(),
        !seed,
        choices.join(", ")
    );
    chains
}

fn egress(egress: Egress) -> &'static str {
    match egress {
        Egress::Any => "",
        Egress::NoUdp => "  iifname \"lan\" meta l4proto udp udp dport != 53 drop\n",
        Egress::Web => {
            "  iifname \"lan\" tcp dport != { 53, 443 } drop
  iifname \"lan\" udp dport != 53 drop
  iifname \"lan\" meta l4proto != { tcp, udp, ipv6-icmp } drop
"
        }
    }
}

/// What is addressed to the router itself: a packet from outside that belongs to nothing must leave no trace in the
/// connection tracking, or it takes the port of a later mapping.
fn input(accepts: bool) -> String {
    let rule = if accepts {
        ""
    } else {
        "  iifname \"wan\" meta l4proto { tcp, udp } ct state new drop\n"
    };
    format!(" chain in {{ type filter hook input priority filter; policy accept;\n{rule} }}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 3, 2);

    #[test]
    fn a_symmetric_router_hashes_the_destination_and_an_independent_one_does_not() {
        let independent = Nat::default().translated();
        assert!(!ruleset(&independent, OUTSIDE, 7).contains("jhash ip saddr . udp sport . ip daddr"));
        let symmetric = Nat::new(Mapping::Symmetric(Sequence::Hashed), Filtering::AddressAndPort);
        assert!(
            ruleset(&symmetric, OUTSIDE, 7).contains("jhash ip saddr . udp sport . ip daddr . udp dport")
        );
    }

    #[test]
    fn only_a_filter_that_is_looser_than_address_and_port_looks_mappings_up() {
        let lookup = "iifname \"wan\" meta l4proto udp dnat to udp dport map @mapped";
        assert!(ruleset(&Nat::full_cone(), OUTSIDE, 1).contains(lookup));
        assert!(ruleset(&Nat::restricted(), OUTSIDE, 1).contains(lookup));
        assert!(!ruleset(&Nat::port_restricted(), OUTSIDE, 1).contains(lookup));
        assert!(!ruleset(&Nat::open(), OUTSIDE, 1).contains(lookup));
    }

    #[test]
    fn a_barrier_without_a_reason_is_no_rule_at_all() {
        assert!(!barrier("p1", false, &[]).contains("chain"));
        assert!(barrier("p1", false, &["::1".parse().unwrap()]).contains("ip6 daddr ::1 drop"));
    }
}
