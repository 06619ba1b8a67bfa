//! Datagrams that can be handed to the system in one call: of one length, but for the last, and to one place.
//!
//! Sends nothing itself.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// What the system takes at once, however many datagrams it is cut into: a UDP datagram over IPv4 is no longer.
const BYTES_MAX: usize = 65_507;

/// Datagrams that wait for each other.
#[derive(Debug, Default)]
pub(super) struct Batch {
    contents: Vec<u8>,
    /// Of the first of them; `None` where there is none.
    first: Option<First>,
}

#[derive(Clone, Copy, Debug)]
struct First {
    length: usize,
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
}

impl Batch {
    pub(super) const fn new() -> Self {
        Self {
            contents: Vec::new(),
            first: None,
        }
    }

    /// Takes one more, where the system cuts at most so many out of one call; says whether it has.
    pub(super) fn take(&mut self, datagram: &Transmit<'_>, count_max: usize) -> bool {
        let length = datagram.contents.len();
        let fits = self.first.is_none_or(|first| {
            let count = self.contents.len().div_ceil(first.length.max(1));
            let is_whole = self.contents.len() == count * first.length;
            // What is shorter than one alone may follow a probe for a longer datagram, and would be lost with it.
            let length_fits = length == first.length || (length < first.length && count > 1);
            (datagram.destination, datagram.ecn, datagram.src_ip)
                == (first.destination, first.ecn, first.src_ip)
                && is_whole
                && length_fits
                && count < count_max
                && self.contents.len() + length <= BYTES_MAX
        });
        if fits {
            self.first.get_or_insert(First {
                length,
                destination: datagram.destination,
                ecn: datagram.ecn,
                src_ip: datagram.src_ip,
            });
            self.contents.extend_from_slice(datagram.contents);
        }
        fits
    }

    /// All of them, for one call.
    pub(super) fn transmit(&self) -> Option<Transmit<'_>> {
        let first = self.first?;
        Some(Transmit {
            destination: first.destination,
            ecn: first.ecn,
            contents: &self.contents,
            segment_size: (self.contents.len() > first.length).then_some(first.length),
            src_ip: first.src_ip,
        })
    }

    /// Keeps the memory for the next.
    pub(super) fn clear(&mut self) {
        self.contents.clear();
        self.first = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_of_one_length_leave_together_and_a_shorter_one_is_the_last() {
        let mut batch = Batch::new();
        assert!(batch.take(&datagram(&[1; 1200], 1), 64));
        assert!(batch.take(&datagram(&[2; 1200], 1), 64));
        assert!(batch.take(&datagram(&[3; 700], 1), 64));
        assert!(!batch.take(&datagram(&[4; 700], 1), 64));
        assert!(!batch.take(&datagram(&[5; 1200], 1), 64));
        let transmit = batch.transmit().unwrap();
        assert_eq!(
            (transmit.contents.len(), transmit.segment_size),
            (3100, Some(1200))
        );
        batch.clear();
        assert!(batch.transmit().is_none());
    }

    #[test]
    fn one_alone_leaves_as_it_is() {
        let mut batch = Batch::new();
        assert!(batch.take(&datagram(&[1; 1200], 1), 64));
        let transmit = batch.transmit().unwrap();
        assert_eq!((transmit.contents.len(), transmit.segment_size), (1200, None));
    }

    #[test]
    fn a_probe_for_longer_datagrams_leaves_alone() {
        let mut batch = Batch::new();
        assert!(batch.take(&datagram(&[1; 1200], 1), 64));
        assert!(
            !batch.take(&datagram(&[2; 1452], 1), 64),
            "longer than the others"
        );
        batch.clear();
        assert!(batch.take(&datagram(&[2; 1452], 1), 64));
        assert!(!batch.take(&datagram(&[3; 1200], 1), 64), "would be lost with it");
    }

    #[test]
    fn what_goes_elsewhere_or_is_more_than_the_system_takes_waits_for_the_next() {
        let mut batch = Batch::new();
        assert!(batch.take(&datagram(&[1; 1200], 1), 2));
        assert!(!batch.take(&datagram(&[2; 1200], 2), 2));
        assert!(batch.take(&datagram(&[2; 1200], 1), 2));
        assert!(!batch.take(&datagram(&[3; 1200], 1), 2));
        batch.clear();
        let long = [0; 16_368];
        let taken = (0..64)
            .take_while(|_| batch.take(&datagram(&long, 1), 64))
            .count();
        assert_eq!(taken, 4);
    }

    fn datagram(contents: &[u8], port: u16) -> Transmit<'_> {
        Transmit {
            destination: ([127, 0, 0, 1], port).into(),
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        }
    }
}
