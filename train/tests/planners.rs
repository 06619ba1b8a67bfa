//! What planners reach on whole networks, in virtual time: the published figures, and who is first.
//!
//! The example `planners` prints the same for more seeds and masks.

use lapwing_base::Planner;
use lapwing_train::Knobs;
use lapwing_train::simulate::Network;
use lapwing_train::simulate::averaging::{Choice, by_thresholds, mean_bottleneck, median, spread};

fn cities() -> Network {
    Network::fourteen_cities()
}

fn uniform(seed: u64) -> Network {
    Network::uniform(32, 0, 5000, seed)
}

fn few_slow() -> Network {
    Network::few_slow()
}

fn equal() -> Network {
    Network::equal(16, 10_000)
}

#[test]
fn thresholds_give_fourteen_cities_the_published_bandwidth() {
    // What a maximum matching drawn evenly from all of them would give: every perfect matching of the links of at
    // least 1.45 Mbit/s, 9,870, and of at least 1 Mbit/s, 96,390, was counted once.
    for (threshold, published, even_draw) in [(1450, 1.513, 1.5091), (1000, 1.271, 1.2676)] {
        let (mean, deviation) =
            runs(|seed| mean_bottleneck(&cities(), &by_thresholds(threshold, 10, seed, 1)));
        let measured = format!("{mean:.4} ± {deviation:.4}, published {published}");
        assert!((mean - published).abs() < 2.0 * deviation, "{measured}");
        // Four standard errors of twenty runs.
        assert!((mean - even_draw).abs() < deviation, "{measured}");
    }
    // No link of a city in China is that fast. Theirs draws what is left over, ours takes the fastest of it.
    let (mean, _) = runs(|seed| mean_bottleneck(&cities(), &by_thresholds(5000, 10, seed, 1)));
    assert!(mean > 1.2, "published 0.989, measured {mean}");
}

#[test]
fn thresholds_give_thirty_two_random_links_the_published_bandwidth() {
    let (mean, deviation) = runs(|seed| mean_bottleneck(&uniform(seed), &by_thresholds(4000, 10, seed, 1)));
    for published in [4.049, 3.91] {
        let measured = format!("{mean:.3} ± {deviation:.3}, published {published}");
        assert!((mean - published).abs() < 2.0 * deviation, "{measured}");
    }
}

#[test]
fn the_adaptive_planner_is_ahead_of_thresholds_at_their_best_and_of_random_pairs() {
    // Bandwidth and window as the example finds them.
    ahead(&cities(), 1, (1400, 5), 0.7);
    ahead(&cities(), 25, (1400, 10), 0.8);
    ahead(&uniform(1), 1, (2900, 5), 0.5);
    ahead(&uniform(1), 25, (2900, 5), 0.8);
    ahead(&few_slow(), 1, (700, 5), 0.7);
    ahead(&few_slow(), 25, (700, 5), 0.7);
}

#[test]
fn the_adaptive_planner_is_ahead_of_random_pairs_where_all_links_are_equal() {
    ahead(&equal(), 1, (10_000, 5), 0.8);
    ahead(&equal(), 25, (10_000, 5), 0.8);
}

#[test]
fn the_adaptive_planner_finds_the_good_links_by_trying() {
    for network in [cities(), few_slow()] {
        let median = |learns| {
            median(&network, 5, |seed| Choice {
                planner: Planner::Adaptive,
                knobs: Knobs::default(),
                seed,
                compression: 25,
                learns,
            })
        };
        let (blind, told) = (median(true), median(false));
        assert!(
            blind.seconds < 2.0 * told.seconds,
            "{}: {blind:?}, told {told:?}",
            network.name
        );
    }
}

/// The adaptive planner takes at most `part` of what thresholds take, and of what random pairs take.
fn ahead(network: &Network, compression: u32, (kbit_s, window): (u32, u32), part: f64) {
    let plain = |planner| {
        median(network, 5, |seed| Choice {
            planner,
            knobs: Knobs::default(),
            seed,
            compression,
            learns: false,
        })
    };
    let adaptive = plain(Planner::Adaptive);
    let thresholds = median(network, 5, |seed| {
        by_thresholds(kbit_s, window, seed, compression)
    });
    let random = plain(Planner::Random);
    assert!(
        adaptive.seconds < part * thresholds.seconds.min(random.seconds) && adaptive.rounds > 0,
        "{}, c = {compression}: adaptive {adaptive:?}, thresholds {thresholds:?}, random {random:?}",
        network.name,
    );
}

/// Mean and standard deviation over twenty seeds.
fn runs(run: impl Fn(u64) -> f64) -> (f64, f64) {
    spread(&(1..=20).map(run).collect::<Vec<_>>())
}
