//! What a network has found out about its own place, in words and with advice. Asks nobody.

use std::net::SocketAddr;

use lapwing_base::{Multiaddr, Protocol, Role};
use lapwing_net::{Family, Filtering, Mapping, NatType, ReachStatus, Udp};

use super::finding::Finding;

/// UDP, the NAT of each family, and the role. `listen` is what the person asked for, if anything.
pub(super) fn findings(reach: &ReachStatus, listen: &[Multiaddr]) -> Vec<Finding> {
    let mut findings = vec![udp(reach.nat.udp)];
    findings.extend(nats(reach));
    findings.push(role(reach, listen));
    findings
}

fn udp(udp: Udp) -> Finding {
    match udp {
        Udp::Open => Finding::good("UDP", "passes"),
        Udp::Blocked => Finding::bad(
            "UDP",
            "is blocked on this network",
            "ask for outgoing UDP to be allowed; until then everything goes over TLS to a main, and is relayed",
        ),
        Udp::Unknown => Finding::fair(
            "UDP",
            "is not known to pass: no main outside this network has answered over it",
            "look again with a main that is outside this network",
        ),
    }
}

/// One for each family that anything is known of, and one at least.
fn nats(reach: &ReachStatus) -> Vec<Finding> {
    if reach.nat.udp == Udp::Blocked {
        return vec![Finding::untold("NAT", "cannot be seen where UDP is blocked")];
    }
    let is_open = reach.standing.role == Role::Main && !reach.standing.provisional;
    let families = [(Family::V4, reach.nat), (Family::V6, reach.nat_v6)].map(|(family, nat)| {
        let seen = reach
            .observed
            .iter()
            .filter(|seen| Family::of(seen.ip()) == family);
        (family, nat, seen.copied().collect::<Vec<_>>())
    });
    let is_known = |nat: &NatType, seen: &[SocketAddr]| nat.mapping != Mapping::Unknown || !seen.is_empty();
    let mut findings: Vec<_> = families
        .iter()
        .filter(|(_, nat, seen)| is_known(nat, seen))
        .map(|(family, nat, seen)| of_family(*family, nat, seen, is_open))
        .collect();
    if findings.is_empty() {
        findings.push(of_family(Family::V4, &reach.nat, &[], is_open));
    }
    findings
}

fn of_family(family: Family, nat: &NatType, seen: &[SocketAddr], is_open: bool) -> Finding {
    let topic = match family {
        Family::V4 => "NAT (IPv4)",
        Family::V6 => "NAT (IPv6)",
    };
    let mut found = match nat.mapping {
        Mapping::None => "none",
        Mapping::EndpointIndependent => "one port for everybody (endpoint-independent)",
        Mapping::AddressDependent => "another port for every address (address-dependent)",
        Mapping::Symmetric => "another port for everybody (symmetric)",
        Mapping::Unknown => "not known",
    }
    .to_owned();
    match nat.port_preserving {
        Some(true) => found.push_str("; it keeps ports"),
        Some(false) => found.push_str("; it translates ports"),
        None => (),
    }
    found.push_str(match nat.filtering {
        Filtering::EndpointIndependent => "; everybody is let in",
        Filtering::AddressDependent => "; who was sent to is let in (address-dependent filtering)",
        Filtering::AddressAndPortDependent => {
            "; who was sent to is let in, from that port only (address-and-port-dependent filtering)"
        }
        Filtering::Unknown => "",
    });
    if !seen.is_empty() {
        let seen: Vec<_> = seen.iter().map(ToString::to_string).collect();
        found.push_str(&format!("; others see {}", seen.join(", ")));
    }
    match nat.mapping {
        _ if is_open => Finding::good(topic, found),
        Mapping::None | Mapping::EndpointIndependent => Finding::good(topic, found),
        Mapping::AddressDependent | Mapping::Symmetric => {
            let advice = match family {
                Family::V4 => {
                    "no direct path leads to another such NAT: switch on UPnP or NAT-PMP in the router, forward a \
                     port, or use IPv6"
                }
                Family::V6 => {
                    "no direct path leads to another such NAT: let the router give real IPv6 addresses"
                }
            };
            Finding::fair(topic, found, advice)
        }
        Mapping::Unknown => Finding::fair(
            topic,
            found,
            "look again when the gateway knows two mains in different places",
        ),
    }
}

fn role(reach: &ReachStatus, listen: &[Multiaddr]) -> Finding {
    let mut forwarded = listen.iter().filter_map(udp_port);
    match (reach.standing.role, reach.standing.provisional) {
        (Role::Main, false) => Finding::good(
            "role",
            "main: everybody reaches this machine, so that it relays for others, and votes when it is needed",
        ),
        (Role::Main, true) => Finding::good("role", "main, as far as anybody has looked"),
        (Role::Home, false) => match forwarded.next() {
            Some(port) => Finding::fair(
                "role",
                format!("home: nobody reaches this machine at UDP port {port}"),
                "forward that port to this machine in the router and let it through the firewall, if it is to be a main",
            ),
            None => Finding::good(
                "role",
                "home: it dials out and is reached through relays; a node also asks the router for a port, which may \
                 make it a main",
            ),
        },
        (Role::Home, true) => Finding::good("role", "home, as far as anybody has looked"),
    }
}

/// The port that an address asks for, unless any will do.
fn udp_port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Udp(port) if port != 0 => Some(port),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use lapwing_net::Standing;

    #[test]
    fn a_blocked_network_is_bad_says_what_to_ask_for_and_nothing_of_nats() {
        let reach = reach(Mapping::Unknown, Udp::Blocked);
        let findings = findings(&reach, &[]);
        assert_eq!(findings[0].verdict, Verdict::Bad);
        assert!(findings[0].advice.as_ref().unwrap().contains("outgoing UDP"));
        assert_eq!((findings[1].topic, findings[1].advice.as_ref()), ("NAT", None));
    }

    #[test]
    fn a_symmetric_nat_works_and_could_work_better() {
        let mut reach = reach(Mapping::Symmetric, Udp::Open);
        reach.nat.port_preserving = Some(false);
        reach.nat.filtering = Filtering::AddressAndPortDependent;
        reach.observed = vec!["192.0.2.1:40000".parse().unwrap()];
        let nat = &findings(&reach, &[])[1];
        assert_eq!(nat.verdict, Verdict::Fair);
        assert_eq!(
            nat.found,
            "another port for everybody (symmetric); it translates ports; who was sent to is let in, from that port \
             only (address-and-port-dependent filtering); others see 192.0.2.1:40000"
        );
    }

    #[test]
    fn each_family_has_its_own_nat() {
        let mut reach = reach(Mapping::Symmetric, Udp::Open);
        reach.nat_v6.mapping = Mapping::None;
        reach.observed = vec![
            "192.0.2.1:40000".parse().unwrap(),
            "[2001:db8::1]:4001".parse().unwrap(),
        ];
        let findings = findings(&reach, &[]);
        assert_eq!(
            (findings[1].topic, findings[2].topic),
            ("NAT (IPv4)", "NAT (IPv6)")
        );
        assert_eq!(findings[2].found, "none; others see [2001:db8::1]:4001");
        assert_eq!(findings[2].verdict, Verdict::Good);
    }

    #[test]
    fn what_everybody_reaches_needs_no_advice_about_its_nat() {
        let mut reach = reach(Mapping::Unknown, Udp::Open);
        reach.standing = Standing {
            role: Role::Main,
            provisional: false,
        };
        assert!(
            findings(&reach, &[])
                .iter()
                .all(|finding| finding.advice.is_none())
        );
    }

    #[test]
    fn a_port_that_was_to_be_forwarded_and_is_not_is_named() {
        let mut reach = reach(Mapping::EndpointIndependent, Udp::Open);
        reach.standing.provisional = false;
        let any: Multiaddr = "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap();
        assert_eq!(findings(&reach, &[any])[2].verdict, Verdict::Good);
        let named: Multiaddr = "/ip4/0.0.0.0/udp/4001/quic-v1".parse().unwrap();
        let role = &findings(&reach, &[named])[2];
        assert_eq!(role.verdict, Verdict::Fair);
        assert!(role.found.contains("port 4001"), "{}", role.found);
    }

    fn reach(mapping: Mapping, udp: Udp) -> ReachStatus {
        let nat = NatType {
            mapping,
            udp,
            ..NatType::default()
        };
        ReachStatus {
            nat,
            ..ReachStatus::default()
        }
    }
}
