//! The bandwidths that were measured between fourteen cities for the papers on SAPS and GossipFL.
//!
//! Tang et al., "Communication-Efficient Decentralized Learning with Sparsification and Adaptive Peer Selection"
//! (ICDCS 2020, arXiv 2002.09692) and "GossipFL" (IEEE TPDS 34(3), 2023, doi 10.1109/TPDS.2022.3230938). Four of the
//! cities are in China, and everything that leaves them is slow. Data only: planners, what measures them, and
//! simulations share it.

use lapwing_base::{Bandwidth, Bandwidths, LinkSpeed, NodeId};

/// The cities, in the order of [`CITY_KBIT_S`].
pub const CITIES: [&str; 14] = [
    "Beijing",
    "Shanghai",
    "Shenzhen",
    "Zhangjiakou",
    "Columbus",
    "Dublin",
    "Frankfurt",
    "London",
    "Montreal",
    "Mumbai",
    "Paris",
    "Portland",
    "San Francisco",
    "Sao Paulo",
];

/// What each city sends (row) to each other one (column), in kbit/s.
#[rustfmt::skip]
pub const CITY_KBIT_S: [[u32; 14]; 14] = [
    [      0,   1_300,   1_500,   1_200,   1_600,   1_600,   1_500,   1_600,   1_700,   1_400,   1_700,   1_500,   1_600,   1_500],
    [  1_300,       0,   1_500,   1_200,   1_500,   1_500,   1_500,   1_600,   1_500,   1_200,   1_500,   1_500,   1_400,   1_600],
    [  1_400,   1_300,       0,   1_300,   1_500,   1_600,   1_400,   1_700,   1_300,   1_600,   1_700,   1_400,   1_600,   1_400],
    [  1_200,   1_300,   1_400,       0,   1_500,   1_400,   1_500,   1_500,   1_500,   1_200,   1_500,   1_600,   1_600,   1_600],
    [ 11_000,   2_200,  27_700,   6_800,       0,  82_500,  73_100,  82_200, 132_500,  49_100,  69_500,  84_800,  98_000,  57_400],
    [  6_800,   1_100,  20_200,   4_700,  82_600,       0, 129_200, 269_200,  78_300,  73_300, 147_100,  50_300,  54_400,  37_000],
    [ 27_300,   1_100,  15_100,  21_800,  83_200, 184_800,       0, 331_200,  86_400,  76_800, 261_100,  62_400,  70_600,  42_300],
    [    200,  13_900,  27_600,  14_800,  60_800, 195_300, 276_200,       0,  63_300,  75_400, 323_100,  50_300,  62_600,  39_800],
    [    200,  16_900,   5_700,   1_100, 166_800,  83_900,  64_000,  61_600,       0,  40_700,  54_000,  80_400,  65_900,  39_100],
    [ 36_200,  27_400,   1_700,  22_000,  37_500,  48_600,  54_700,  50_000,  35_800,       0,  45_000,  33_500,  39_000,  22_500],
    [ 36_000,     600,  16_800,  21_100,  27_900, 115_100, 247_800, 317_400,  51_600,  47_500,       0,  48_100,  36_800,  24_400],
    [ 15_600,  28_600,  10_600,   8_100,  94_800,  45_400,  43_800,  46_300,  70_400,  27_000,  45_800,       0, 172_900,  39_400],
    [  2_300,   3_900,  22_500,   5_700,  78_300,  45_600,  32_700,  34_500,  47_300,  23_200,  23_700, 134_500,       0,  31_200],
    [    100,  15_100,   8_200,  15_400,  41_800,  32_700,  39_900,  37_900,  59_600,  25_000,  38_400,  38_200,  39_900,       0],
];

/// The cities as members 1 to 14, every link measured.
pub fn city_bandwidths() -> Bandwidths {
    let mut bandwidths = Bandwidths::default();
    for (from, row) in (1..).zip(CITY_KBIT_S) {
        for (to, kbit_s) in (1..).zip(row).filter(|(to, _)| *to != from) {
            let (from, to, speed) = (NodeId(from), NodeId(to), Bandwidth::kbit(kbit_s));
            bandwidths.set(LinkSpeed { from, to, speed });
        }
    }
    bandwidths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_between_two_cities_is_as_fast_as_the_slower_direction() {
        let bandwidths = city_bandwidths();
        assert_eq!(bandwidths.len(), 14 * 13);
        // London sends to Beijing at 0.2 Mbit/s, and gets 1.6.
        assert_eq!(
            bandwidths.between(NodeId(1), NodeId(8)),
            Some(Bandwidth::kbit(200))
        );
    }
}
