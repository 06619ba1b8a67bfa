//! Who may be half-way in: a bound on handshakes, in all and from one network. Has no sockets and no clock.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::driver::addresses::prefix;

/// Handshakes in progress.
///
/// Each holds a socket and some kilobytes while it lasts, and it costs its sender nothing; so they are few, and one
/// network cannot take them all.
#[derive(Debug)]
pub(crate) struct Handshakes {
    max: usize,
    per_prefix_max: usize,
    next_id: u64,
    /// By the two ends of the connection.
    running: HashMap<Ends, Handshake>,
    per_prefix: HashMap<IpAddr, usize>,
}

/// The two ends of a connection, ours first.
pub(crate) type Ends = (SocketAddr, SocketAddr);

/// Names one handshake, also when another has the same ends later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct HandshakeId(u64);

#[derive(Debug)]
struct Handshake {
    id: HandshakeId,
    prefix: IpAddr,
}

/// Why a connection is closed before it has said anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Crowded {
    /// There are too many handshakes.
    All,
    /// There are too many from where it comes.
    Prefix,
}

impl Handshakes {
    pub(crate) fn new(max: usize, per_prefix_max: usize) -> Self {
        Self {
            max,
            per_prefix_max,
            next_id: 0,
            running: HashMap::new(),
            per_prefix: HashMap::new(),
        }
    }

    /// Counts a handshake that begins.
    pub(crate) fn admit(&mut self, ends: Ends) -> Result<HandshakeId, Crowded> {
        // The kernel knows these ends only once, so an older handshake with them is over.
        self.remove(&ends);
        if self.running.len() >= self.max {
            return Err(Crowded::All);
        }
        let prefix = prefix(ends.1.ip());
        let count = self.per_prefix.entry(prefix).or_default();
        if *count >= self.per_prefix_max {
            return Err(Crowded::Prefix);
        }
        *count += 1;
        let id = HandshakeId(self.next_id);
        self.next_id += 1;
        self.running.insert(ends, Handshake { id, prefix });
        Ok(id)
    }

    /// The connection between these ends stands.
    pub(crate) fn established(&mut self, ends: Ends) {
        self.remove(&ends);
    }

    /// The handshake is over, in whichever way. It may have been counted out before.
    pub(crate) fn ended(&mut self, ends: Ends, id: HandshakeId) {
        if self
            .running
            .get(&ends)
            .is_some_and(|handshake| handshake.id == id)
        {
            self.remove(&ends);
        }
    }

    fn remove(&mut self, ends: &Ends) {
        let Some(Handshake { prefix, .. }) = self.running.remove(ends) else {
            return;
        };
        if let Some(count) = self.per_prefix.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.per_prefix.remove(&prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_cannot_take_every_place() {
        let mut handshakes = Handshakes::new(3, 2);
        handshakes.admit(from("192.0.2.1:1")).unwrap();
        handshakes.admit(from("192.0.2.77:1")).unwrap();
        assert_eq!(handshakes.admit(from("192.0.2.1:2")), Err(Crowded::Prefix));
        handshakes.admit(from("198.51.100.1:1")).unwrap();
        assert_eq!(handshakes.admit(from("203.0.113.1:1")), Err(Crowded::All));
    }

    #[test]
    fn ipv6_is_counted_by_what_a_customer_has() {
        let mut handshakes = Handshakes::new(10, 1);
        handshakes.admit(from("[2001:db8:1:2::1]:1")).unwrap();
        assert_eq!(
            handshakes.admit(from("[2001:db8:1:ffff::2]:1")),
            Err(Crowded::Prefix)
        );
        handshakes.admit(from("[2001:db8:2::1]:1")).unwrap();
    }

    #[test]
    fn a_place_is_free_again_when_a_handshake_ends_or_succeeds() {
        let mut handshakes = Handshakes::new(1, 1);
        let (a, b) = (from("192.0.2.1:1"), from("198.51.100.1:1"));
        let id = handshakes.admit(a).unwrap();
        handshakes.ended(a, id);
        handshakes.admit(b).unwrap();
        handshakes.established(b);
        handshakes.admit(a).unwrap();
        assert!(handshakes.per_prefix.len() == 1);
    }

    #[test]
    fn the_late_end_of_an_old_handshake_does_not_count_out_a_new_one() {
        let mut handshakes = Handshakes::new(1, 1);
        let ends = from("192.0.2.1:1");
        let old = handshakes.admit(ends).unwrap();
        handshakes.admit(ends).unwrap();
        handshakes.ended(ends, old);
        assert_eq!(handshakes.admit(from("198.51.100.1:1")), Err(Crowded::All));
    }

    fn from(remote: &str) -> Ends {
        ("192.0.2.254:443".parse().unwrap(), remote.parse().unwrap())
    }
}
