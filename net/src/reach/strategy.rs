//! How two nodes open their NATs for one another: what each attempt does, and what the next one does differently.
//!
//! Most attempts that fail would fail again in the same way (of libp2p's successes 97.6 % come with the first
//! attempt; "Decentralized Hole Punching", Seemann et al., 2022), so every attempt changes something.

use crate::{NatType, PortSpan, Prospect, Side};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How one attempt goes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum Strategy {
    /// Both sides probe at the same moment, so that the probes cross: each NAT sees its own side's first.
    Simultaneous,
    /// Both sides open their NATs with packets that die before they reach the other's, and then one side probes
    /// and the other answers: no router sees the other side first, however badly the moments were agreed.
    Primed {
        /// Who probes first.
        first: Side,
        /// Hops that the opening packets live: past the own NATs, not up to the other's.
        ttl: u8,
    },
    /// As [`Self::Simultaneous`], with the ports that a counting NAT gives next.
    Predicted,
    /// The symmetric side opens many ports towards the other, which guesses until it hits one.
    Birthday {
        /// Whose ports are guessed.
        symmetric: Side,
        /// How many ports it opens; at most [`Strategy::SOCKETS_MAX`].
        sockets: u16,
        /// How many the other guesses; at most [`Strategy::GUESSES_MAX`].
        guesses: u16,
    },
}

impl Strategy {
    /// Most sockets that one attempt opens: a process may have 1,024 files by default.
    pub const SOCKETS_MAX: u16 = 256;
    /// Most guesses: two volleys at ports of which none is guessed twice, the second only where the first has missed.
    /// Each volley takes 15 s at the rate that is allowed; meanwhile the open ports are opened again, since Linux closes
    /// them after 30 s. Whoever guesses sends one IP address 160 kB at most, and that once in ten minutes.
    pub const GUESSES_MAX: u16 = 2 * VOLLEY;

    /// What the attempt with this number (from 0) does between these two.
    ///
    /// `predicted` says whether a symmetric side has foretold ports, `ports` from where its NAT gives them, and
    /// `birthday` whether both may guess now.
    pub fn choose(
        number: u32,
        offerer: &NatType,
        answerer: &NatType,
        predicted: bool,
        ports: PortSpan,
        birthday: bool,
    ) -> Self {
        let plain = if predicted {
            Self::Predicted
        } else {
            Self::Simultaneous
        };
        if offerer.prospect(answerer) == Prospect::Birthday && number > 0 && birthday {
            let symmetric = if offerer.is_symmetric() {
                Side::Offerer
            } else {
                Side::Answerer
            };
            let (sockets, guesses) = Self::guesses(ports);
            return Self::Birthday {
                symmetric,
                sockets,
                guesses,
            };
        }
        match number % 3 {
            0 => plain,
            1 => Self::Primed {
                first: Side::Offerer,
                ttl: TTL_NEAR,
            },
            _ => Self::Primed {
                first: Side::Answerer,
                ttl: TTL_FAR,
            },
        }
    }

    /// Sockets and guesses for ports out of this range, so that fewer than one attempt in 100,000 misses.
    ///
    /// For all ports, 256 are open of 64,512. One volley misses with (1 - 256/64,512)^1,536, which is 2.2 in 1,000, and
    /// both with (1 - 256/64,512)^3,072, which is 5 in 1,000,000. For a carrier's block of 1,024, 32 are open, and both
    /// volleys of 256 miss with (1 - 32/1,024)^512, which is less than one in 10,000,000. Guessing no port twice makes
    /// it fewer still: (1 - 3,072/64,512)^256 is 3.8 in 1,000,000.
    pub const fn guesses(ports: PortSpan) -> (u16, u16) {
        if ports.len() <= 1024 {
            (32, 512)
        } else {
            (Self::SOCKETS_MAX, Self::GUESSES_MAX)
        }
    }

    /// The chance that one of `guesses` random ports out of `ports` is among `sockets` that are open:
    /// 1 - (1 - sockets/ports)^guesses, which guessing no port twice only improves.
    pub fn odds(sockets: u16, guesses: u16, ports: u32) -> f64 {
        let missed = 1.0 - f64::from(sockets) / f64::from(ports.max(1));
        1.0 - missed.max(0.0).powi(i32::from(guesses))
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simultaneous => "simultaneous",
            Self::Primed { .. } => "primed",
            Self::Predicted => "predicted",
            Self::Birthday { .. } => "birthday",
        })
    }
}

/// Half as many again as 98 % need.
const VOLLEY: u16 = 1536;
/// Past the router of a home: two such routers may be neighbours.
const TTL_NEAR: u8 = 2;
/// Past a carrier's NAT behind it as well.
const TTL_FAR: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Filtering, Mapping};
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    #[test]
    fn every_attempt_differs_from_the_one_before() {
        let (cone, symmetric) = (nat(Mapping::EndpointIndependent), nat(Mapping::Symmetric));
        for (a, b) in [(cone, cone), (cone, symmetric), (symmetric, symmetric)] {
            for birthday in [true, false] {
                let of = |n| Strategy::choose(n, &a, &b, false, PortSpan::ANY, birthday && n == 1);
                for n in 0..9 {
                    assert_ne!(of(n), of(n + 1), "{a:?} {b:?} {n}");
                }
            }
        }
    }

    #[test]
    fn ports_are_guessed_only_when_there_is_no_other_way_and_it_is_allowed() {
        let (cone, symmetric) = (nat(Mapping::EndpointIndependent), nat(Mapping::Symmetric));
        let of = |a: &NatType, b: &NatType, allowed| Strategy::choose(1, a, b, false, PortSpan::ANY, allowed);
        let is =
            |strategy, side| matches!(strategy, Strategy::Birthday { symmetric, .. } if symmetric == side);
        assert!(is(of(&cone, &symmetric, true), Side::Answerer));
        assert!(is(of(&symmetric, &cone, true), Side::Offerer));
        assert!(matches!(of(&cone, &symmetric, false), Strategy::Primed { .. }));
        assert!(matches!(of(&cone, &cone, true), Strategy::Primed { .. }));
        assert!(matches!(
            of(&symmetric, &symmetric, true),
            Strategy::Primed { .. }
        ));
    }

    #[test]
    fn the_formula_gives_the_known_figures() {
        let near = |odds: f64, percent: f64| (odds * 100.0 - percent).abs() < 0.1;
        assert!(near(Strategy::odds(256, 1024, 65_535), 98.2));
        assert!(near(Strategy::odds(16, 256, 1024), 98.2));
        let ours = |ports: PortSpan| {
            let (sockets, guesses) = Strategy::guesses(ports);
            Strategy::odds(sockets, guesses, ports.len())
        };
        let block = PortSpan {
            low: 2048,
            high: 3071,
        };
        assert!(ours(PortSpan::ANY) > 0.999_99);
        assert!(ours(block) > 0.999_99);
    }

    #[test]
    fn ten_thousand_runs_agree_with_the_formula() {
        let mut rng = StdRng::seed_from_u64(1);
        let ports = PortSpan::ANY.len() as usize;
        let (sockets, guesses, runs) = (256_u16, 1024_u16, 10_000);
        let mut open = vec![0_u32; ports];
        let mut hits = 0;
        for run in 1..=runs {
            for _ in 0..sockets {
                open[rng.random_range(0..ports)] = run;
            }
            let guessed = rand::seq::index::sample(&mut rng, ports, usize::from(guesses));
            hits += u32::from(guessed.iter().any(|port| open[port] == run));
        }
        let measured = f64::from(hits) / f64::from(runs);
        let formula = Strategy::odds(sockets, guesses, PortSpan::ANY.len());
        println!("birthday, 256 x 1024: measured {measured:.4}, formula {formula:.4}");
        assert!(measured >= 0.98 && (measured - formula).abs() < 0.005);
    }

    fn nat(mapping: Mapping) -> NatType {
        NatType {
            mapping,
            filtering: Filtering::AddressAndPortDependent,
            ..NatType::default()
        }
    }
}
