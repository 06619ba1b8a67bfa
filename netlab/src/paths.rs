//! What single destinations get of what leaves a link, as a core: where a sender's rate depends on who receives.
//!
//! A link's own shape comes first, as an uplink does; what goes to a destination with a path passes that path, each with
//! a queue of its own, and everything else goes on unhindered. It reads no clock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use crate::draws::Draws;
use crate::pipe::Pipe;
use crate::shape::Shape;

/// The paths beyond a link.
#[derive(Debug)]
pub(crate) struct Paths {
    seed: u64,
    /// Few, so that they are looked through: as many as a lab has hosts.
    paths: Vec<Path>,
}

#[derive(Debug)]
struct Path {
    to: Vec<IpAddr>,
    pipe: Pipe,
}

impl Paths {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            paths: Vec::new(),
        }
    }

    /// Shapes the path to a destination, or changes how later frames are treated on it. An address belongs to the path
    /// that was made first for it.
    pub(crate) fn set(&mut self, to: &[IpAddr], shape: Shape) {
        match self.paths.iter_mut().find(|path| path.to == to) {
            Some(path) => path.pipe.set_shape(shape),
            None => {
                let seed = Draws::seed_of(self.seed, self.paths.len() as u64);
                self.paths.push(Path {
                    to: to.to_vec(),
                    pipe: Pipe::new(shape, seed),
                });
            }
        }
    }

    /// The path that a frame takes, if it goes to a destination that has one.
    pub(crate) fn towards(&mut self, frame: &[u8]) -> Option<&mut Pipe> {
        if self.paths.is_empty() {
            return None;
        }
        let to = destination(frame)?;
        let path = self.paths.iter_mut().find(|path| path.to.contains(&to))?;
        Some(&mut path.pipe)
    }

    /// The next frame that has arrived by `now`, from any path.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.paths.iter_mut().find_map(|path| path.pipe.pop(now))
    }

    /// When the next frame arrives.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.paths.iter().filter_map(|path| path.pipe.next_at()).min()
    }
}

/// Where an Ethernet frame's packet goes, if it is one of IP.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    let (kind, packet) = (frame.get(12..14)?, frame.get(14..)?);
    match kind {
        [0x08, 0x00] => {
            let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            Some(Ipv4Addr::from(address).into())
        }
        [0x86, 0xDD] => {
            let address: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            Some(Ipv6Addr::from(address).into())
        }
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_destination_has_a_rate_of_its_own_and_others_have_none() {
        let (near, far): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let far6: IpAddr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into();
        let mut paths = Paths::new(1);
        paths.set(&[near], Shape::mbit(8));
        paths.set(&[far, far6], Shape::mbit(1));
        let now = Instant::now();
        for to in [near, far, far6] {
            let frame = frame(to);
            paths.towards(&frame).unwrap().push(now, frame);
        }
        assert!(paths.towards(&frame([10, 0, 0, 3].into())).is_none());
        // 1,000 bytes take 1 ms at 8 Mbit/s and 8 ms at 1 Mbit/s, and the two to the far one wait for each other.
        let mut arrived = Vec::new();
        while let Some(at) = paths.next_at() {
            let frame = paths.pop(at).unwrap();
            arrived.push((destination(&frame).unwrap(), at - now));
        }
        let ms = Duration::from_millis;
        assert_eq!(arrived, [(near, ms(1)), (far, ms(8)), (far6, ms(16))]);
    }

    #[test]
    fn a_path_that_is_shaped_again_treats_later_frames_so() {
        let to: IpAddr = [10, 0, 0, 1].into();
        let mut paths = Paths::new(1);
        paths.set(&[to], Shape::mbit(1));
        paths.set(&[to], Shape::mbit(8));
        let now = Instant::now();
        paths.towards(&frame(to)).unwrap().push(now, frame(to));
        assert_eq!(paths.next_at(), Some(now + Duration::from_millis(1)));
    }

    #[test]
    fn what_is_no_packet_has_no_destination() {
        for frame in [&[][..], &[0; 13], &[0; 60], &[8, 0][..]] {
            assert_eq!(destination(frame), None);
        }
        let mut cut = frame([10, 0, 0, 1].into());
        cut.truncate(33);
        assert_eq!(destination(&cut), None);
    }

    fn frame(to: IpAddr) -> Vec<u8> {
        let mut frame = vec![0; 1_000];
        match to {
            IpAddr::V4(to) => {
                frame[12..14].copy_from_slice(&[0x08, 0x00]);
                frame[30..34].copy_from_slice(&to.octets());
            }
            IpAddr::V6(to) => {
                frame[12..14].copy_from_slice(&[0x86, 0xDD]);
                frame[38..54].copy_from_slice(&to.octets());
            }
        }
        frame
    }
}
