//! How long what a round does would take: virtual seconds, from bytes and the speeds of links.
//!
//! Pure arithmetic. The papers' accounting (arXiv 2002.09692, section 6): the time of a round is its bytes, times 8,
//! over the bandwidth of its slowest exchange. Links do not share anything: a node that speaks with two others does
//! so at the full speed of both links, which is how the bandwidths were measured.

use lapwing_base::{Bandwidths, NodeId, Pair};

/// From one to another: infinite where there is no link.
pub(super) fn transfer(bandwidths: &Bandwidths, from: NodeId, to: NodeId, bytes: u64) -> f64 {
    if bytes == 0 {
        return 0.0;
    }
    match bandwidths.get(from, to) {
        Some(speed) if speed.kbit_s > 0 => bytes as f64 / speed.bytes_per_second(),
        _ => f64::INFINITY,
    }
}

/// Both ways at once: it ends when both directions are through. `bytes` are what the pair's first tells its second,
/// and what the second tells the first.
pub(super) fn exchange(bandwidths: &Bandwidths, pair: Pair, bytes: [u64; 2]) -> f64 {
    let [a, b] = pair.nodes();
    transfer(bandwidths, a, b, bytes[0]).max(transfer(bandwidths, b, a, bytes[1]))
}

/// A ring all-reduce in which everybody sends so many bytes to the next one, piece by piece: the slowest link holds up
/// all.
pub(super) fn ring(bandwidths: &Bandwidths, order: &[NodeId], bytes: u64) -> f64 {
    if order.len() < 2 {
        return 0.0;
    }
    let next = order.iter().cycle().skip(1);
    let links = order.iter().zip(next);
    links
        .map(|(from, to)| transfer(bandwidths, *from, *to, bytes))
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::Network;

    fn matrix(text: &str) -> Bandwidths {
        Network::parse("test", text).unwrap().bandwidths
    }

    fn pair(a: u64, b: u64) -> Pair {
        Pair::new(NodeId(a), NodeId(b)).unwrap()
    }

    #[test]
    fn an_exchange_of_two_ends_when_both_directions_are_through() {
        // 1 Mbit/s there, 8 back.
        let bandwidths = matrix("0,1\n8,0");
        let seconds = exchange(&bandwidths, pair(1, 2), [125_000, 125_000]);
        assert!((seconds - 1.0).abs() < 1e-12, "{seconds}");
        let seconds = exchange(&bandwidths, pair(2, 1), [125_000, 2_000_000]);
        assert!((seconds - 2.0).abs() < 1e-12, "{seconds}");
        assert_eq!(transfer(&bandwidths, NodeId(1), NodeId(3), 1), f64::INFINITY);
        assert_eq!(transfer(&bandwidths, NodeId(1), NodeId(3), 0), 0.0);
    }

    #[test]
    fn a_ring_takes_as_long_as_its_slowest_link_in_the_direction_in_which_pieces_go() {
        // All at 8 Mbit/s but 3 -> 4, which has 2, and 1 -> 4, which has 1.
        let bandwidths = matrix("0,8,8,1\n8,0,8,8\n8,8,0,2\n8,8,8,0");
        let order = [1, 2, 3, 4].map(NodeId);
        let seconds = ring(&bandwidths, &order, 1_500_000);
        assert!((seconds - 6.0).abs() < 1e-12, "{seconds}");
        assert_eq!(ring(&bandwidths, &order[..1], 1000), 0.0);
    }
}
