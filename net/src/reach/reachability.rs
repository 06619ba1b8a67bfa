//! Whether everybody can reach this node, and so whether it is a main or a home. The asker's side: it has mains
//! send datagrams to its addresses and watches which arrive. Sends nothing itself; see [`crate::Witness`].
//!
//! A datagram counts by who sent it: one from an IP address that this node has never sent to proves that the filter
//! is open; one from another port of an IP address that it has sent to proves only that ports do not matter; one from
//! an address that it has sent to proves nothing.

use crate::{
    Contacted, Contacts, Family, Filtering, Probe, ProbeId, ProbeKey, ProbeKind, Scope, Stance, Token,
    WitnessMessage, WitnessRefusal,
};
use lapwing_base::{PeerId, Role};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What the role is, and how well it is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// Main or home.
    pub role: Role,
    /// Whether nobody has confirmed it yet.
    pub provisional: bool,
}

/// What to do, or what has changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ReachAction {
    /// Say this to a connected main.
    Ask {
        /// To whom.
        main: PeerId,
        /// What.
        message: WitnessMessage,
    },
    /// The role, or how well it is known, has changed.
    Stands(Standing),
    /// What is known of a family's filter has changed.
    Filters {
        /// Which family.
        family: Family,
        /// What it lets in.
        filtering: Filtering,
    },
}

/// Checks this node's addresses from time to time.
#[derive(Debug)]
pub struct Reachability {
    pinned: Option<Role>,
    alone: bool,
    rng: StdRng,
    contacts: Contacts,
    mains: BTreeSet<PeerId>,
    targets: BTreeMap<SocketAddr, Target>,
    /// At most two for each target.
    checks: HashMap<ProbeId, Check>,
    told: Option<Standing>,
    told_filtering: [Filtering; 2],
    actions: Vec<ReachAction>,
}

/// An address to check.
#[derive(Debug)]
struct Target {
    /// Whether it is this machine's own, so that no NAT stands before it.
    own: bool,
    state: State,
    filtering: Filtering,
    /// Mains that have reached it from another port since it was last found closed.
    reached_by: BTreeSet<PeerId>,
    rounds: u32,
    round: Option<Round>,
    check_at: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Unknown { inconclusive: u32 },
    Open { failures: u32 },
    Closed { times: u32 },
}

/// One question each for the two stances, under way.
#[derive(Clone, Copy, Debug)]
struct Round {
    ends_at: Instant,
    third_party: Evidence,
    other_port: Evidence,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Evidence {
    /// Nobody has said that a datagram was sent.
    Unasked,
    /// One was sent.
    Sent,
    /// One has arrived.
    Arrived,
}

#[derive(Debug)]
struct Check {
    key: ProbeKey,
    token: Token,
    target: SocketAddr,
    stance: Stance,
    main: PeerId,
}

impl Reachability {
    /// Decides by itself unless a role is `pinned`: then nobody is asked, and the filters stay unknown. The seed is secret: tokens follow from it.
    pub fn new(pinned: Option<Role>, seed: [u8; 32]) -> Self {
        Self {
            pinned,
            alone: false,
            rng: StdRng::from_seed(blake3::derive_key(SEED_CONTEXT, &seed)),
            contacts: Contacts::default(),
            mains: BTreeSet::new(),
            targets: BTreeMap::new(),
            checks: HashMap::new(),
            told: None,
            told_filtering: [Filtering::Unknown; 2],
            actions: Vec::new(),
        }
    }

    /// Whether the role was said, and is not for others to find out.
    pub const fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// Something goes out to this address; to be told at least once a minute while that goes on.
    pub fn sent(&mut self, to: SocketAddr, now: Instant) {
        self.contacts.sent(to, now);
    }

    /// Whether there is nobody to ask: this node founds a cluster, or none of those it was told of answers.
    pub fn set_alone(&mut self, alone: bool) {
        self.alone = alone;
    }

    /// A main is connected directly over UDP.
    pub fn main_connected(&mut self, main: PeerId, now: Instant) {
        if self.mains.len() < MAINS_MAX && self.mains.insert(main) {
            for target in self.targets.values_mut() {
                if target.round.is_none() && matches!(target.state, State::Unknown { .. }) {
                    target.check_at = now;
                }
            }
        }
    }

    /// A main is gone.
    pub fn main_lost(&mut self, main: &PeerId) {
        self.mains.remove(main);
    }

    /// The addresses under which others see this node or a port is mapped; `own` are those of this machine itself.
    /// What was known of addresses that stay is kept. One that was found open stays until there is another of its
    /// family: that nobody has told of it for a while does not close it, and it goes on being checked.
    pub fn set_targets(&mut self, targets: impl IntoIterator<Item = (SocketAddr, bool)>, now: Instant) {
        let wanted: BTreeMap<_, _> = targets
            .into_iter()
            .filter(|(address, _)| address.port() != 0 && Scope::of(address.ip()) != Scope::Nowhere)
            .take(if self.pinned.is_some() { 0 } else { TARGETS_MAX })
            .collect();
        let is_replaced = |address: &SocketAddr| {
            let family = Family::of(address.ip());
            wanted.keys().any(|other| Family::of(other.ip()) == family)
        };
        self.targets.retain(|address, target| {
            let stays = matches!(target.state, State::Open { .. }) && !is_replaced(address);
            stays || wanted.contains_key(address)
        });
        self.checks
            .retain(|_, check| self.targets.contains_key(&check.target));
        for (address, own) in wanted {
            let target = self.targets.entry(address).or_insert_with(|| Target {
                own,
                state: State::Unknown { inconclusive: 0 },
                filtering: Filtering::Unknown,
                reached_by: BTreeSet::new(),
                rounds: 0,
                round: None,
                check_at: now,
            });
            target.own = own;
        }
    }

    /// This machine is in another network, where none of its addresses counts any more.
    pub fn network_changed(&mut self) {
        self.targets.clear();
        self.checks.clear();
    }

    /// A main answers a question.
    pub fn on_message(&mut self, main: &PeerId, message: &WitnessMessage, now: Instant) {
        let WitnessMessage::Answer { token, sent } = message else {
            return;
        };
        let id = ProbeKey::new(token).id();
        let Some(check) = self.checks.get(&id).filter(|check| check.main == *main) else {
            return;
        };
        let (target, stance) = (check.target, check.stance);
        match sent {
            Ok(()) => self.note(target, stance, Evidence::Sent),
            Err(refusal) => {
                self.checks.remove(&id);
                // Somebody else may see the address, or have time.
                if matches!(refusal, WitnessRefusal::NotYours | WitnessRefusal::Busy) {
                    tracing::debug!(%main, %target, %refusal, "reachability check refused");
                }
            }
        }
        self.finish(target, now);
    }

    /// A datagram has arrived; says whether it was a witness's.
    pub fn on_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let Ok(id) = Probe::id(datagram) else {
            return false;
        };
        let Some(check) = self.checks.get(&id) else {
            return false;
        };
        let is_witness = check
            .key
            .open(datagram)
            .is_ok_and(|probe| probe.kind == ProbeKind::Witness);
        if !is_witness {
            return true;
        }
        let (target, main) = (check.target, check.main);
        let stance = match self.contacts.contacted(from, now) {
            Contacted::Exactly => return true,
            Contacted::OtherPort => Stance::OtherPort,
            Contacted::Never => Stance::ThirdParty,
        };
        self.checks.remove(&id);
        self.note(target, stance, Evidence::Arrived);
        if let Some(target) = self.targets.get_mut(&target) {
            target.reached_by.insert(main);
        }
        self.finish(target, now);
        true
    }

    /// What is to be done now; call after every input and at [`Self::next_at`].
    pub fn poll(&mut self, now: Instant) -> Vec<ReachAction> {
        let addresses: Vec<_> = self.targets.keys().copied().collect();
        for address in addresses {
            self.finish(address, now);
            self.begin(address, now);
        }
        self.tell();
        std::mem::take(&mut self.actions)
    }

    /// When [`Self::poll`] has something to do.
    pub fn next_at(&self) -> Option<Instant> {
        self.targets
            .values()
            .filter_map(|target| match target.round {
                Some(round) => Some(round.ends_at),
                None => (!self.mains.is_empty()).then_some(target.check_at),
            })
            .min()
    }

    /// The role as far as it is known.
    pub fn standing(&self) -> Standing {
        if let Some(role) = self.pinned {
            let provisional = false;
            return Standing { role, provisional };
        }
        let any = |is: fn(&State) -> bool| self.targets.values().any(|target| is(&target.state));
        let (role, provisional) = match () {
            () if any(|state| matches!(state, State::Open { .. })) => (Role::Main, false),
            () if any(|state| matches!(state, State::Closed { .. })) => (Role::Home, false),
            () if self.alone => (Role::Main, true),
            () => (Role::Home, true),
        };
        Standing { role, provisional }
    }

    /// What a family's filter lets in: the best of its addresses.
    pub fn filtering(&self, family: Family) -> Filtering {
        let openness = |filtering: &Filtering| match filtering {
            Filtering::EndpointIndependent => 3,
            Filtering::AddressDependent => 2,
            Filtering::AddressAndPortDependent => 1,
            Filtering::Unknown => 0,
        };
        self.targets
            .iter()
            .filter(|(address, _)| Family::of(address.ip()) == family)
            .map(|(_, target)| target.filtering)
            .max_by_key(openness)
            .unwrap_or_default()
    }

    /// The addresses at which this node was found open to everybody.
    pub fn open(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.targets
            .iter()
            .filter(|(_, target)| matches!(target.state, State::Open { .. }))
            .map(|(address, _)| *address)
    }

    fn note(&mut self, target: SocketAddr, stance: Stance, evidence: Evidence) {
        let Some(round) = self
            .targets
            .get_mut(&target)
            .and_then(|target| target.round.as_mut())
        else {
            return;
        };
        let known = match stance {
            Stance::ThirdParty => &mut round.third_party,
            Stance::OtherPort => &mut round.other_port,
        };
        if *known != Evidence::Arrived {
            *known = evidence;
        }
    }

    /// Asks the next mains in turn, one for each stance.
    fn begin(&mut self, address: SocketAddr, now: Instant) {
        let Some(target) = self.targets.get_mut(&address) else {
            return;
        };
        if target.round.is_some() || now < target.check_at || self.mains.is_empty() {
            return;
        }
        let mains: Vec<_> = self.mains.iter().copied().collect();
        let turn = target.rounds as usize;
        target.rounds = target.rounds.wrapping_add(1);
        target.round = Some(Round {
            ends_at: now + PATIENCE,
            third_party: Evidence::Unasked,
            other_port: Evidence::Unasked,
        });
        let avoid = self.contacts.latest(WitnessMessage::AVOID_MAX, now);
        for (n, stance) in [Stance::ThirdParty, Stance::OtherPort].into_iter().enumerate() {
            let main = mains[(turn + n) % mains.len()];
            let token = Token(self.rng.random());
            let key = ProbeKey::new(&token);
            let check = Check {
                key: key.clone(),
                token,
                target: address,
                stance,
                main,
            };
            let message = WitnessMessage::Ask {
                token: check.token,
                target: address,
                stance,
                avoid: avoid.clone(),
            };
            self.checks.insert(key.id(), check);
            self.actions.push(ReachAction::Ask { main, message });
        }
    }

    /// Ends a round that is over, and draws the conclusion.
    fn finish(&mut self, address: SocketAddr, now: Instant) {
        let open_checks = self.checks.values().any(|check| check.target == address);
        let mains = self.mains.len();
        let jitter = self.rng.random_range(0.8..1.2);
        let Some(target) = self.targets.get_mut(&address) else {
            return;
        };
        let Some(round) = target.round else {
            return;
        };
        // An open filter is all there is to know; otherwise wait for what may still come.
        let open = round.third_party == Evidence::Arrived;
        if !open && open_checks && now < round.ends_at {
            return;
        }
        target.round = None;
        self.checks.retain(|_, check| check.target != address);
        let by_port = round.other_port == Evidence::Arrived;
        // Without a NAT, what comes in from any port of two mains comes in from anywhere: a filter that looks at
        // addresses but not at ports is rare. With one main in the world there is no second to ask.
        let trusted = by_port
            && target.own
            && round.third_party != Evidence::Sent
            && target.reached_by.len() >= mains.clamp(1, MAINS_AGREEING);
        let asked = round.third_party != Evidence::Unasked || round.other_port != Evidence::Unasked;
        target.filtering = match () {
            () if open || trusted => Filtering::EndpointIndependent,
            () if by_port => Filtering::AddressDependent,
            () if round.other_port == Evidence::Sent => Filtering::AddressAndPortDependent,
            () => target.filtering,
        };
        let waiting = by_port && target.own && round.third_party != Evidence::Sent && !trusted;
        let (state, wait) = match target.state {
            _ if open || trusted => (State::Open { failures: 0 }, RECHECK_OPEN),
            // One main's word so far: the next is asked at once.
            state if waiting => (state, Duration::ZERO),
            State::Unknown { inconclusive } if !asked => {
                let inconclusive = inconclusive.saturating_add(1);
                let wait = RETRY.saturating_mul(1 << inconclusive.min(5));
                (State::Unknown { inconclusive }, wait.min(RECHECK_OPEN))
            }
            state if !asked => (state, RETRY.saturating_mul(6)),
            State::Open { failures } if failures + 1 < FAILURES_MAX => {
                let failures = failures + 1;
                (State::Open { failures }, RETRY)
            }
            State::Open { .. } | State::Unknown { .. } => {
                target.reached_by.clear();
                // A datagram may have been lost, so the next check is soon.
                (State::Closed { times: 1 }, RETRY)
            }
            State::Closed { times } => {
                let times = times.saturating_add(1);
                let wait = RETRY.saturating_mul(1 << times.min(7));
                (State::Closed { times }, wait.min(RECHECK_CLOSED))
            }
        };
        target.state = state;
        target.check_at = now + wait.mul_f64(jitter);
    }

    fn tell(&mut self) {
        let standing = self.standing();
        if self.told != Some(standing) {
            self.told = Some(standing);
            self.actions.push(ReachAction::Stands(standing));
        }
        for (n, family) in Family::ALL.into_iter().enumerate() {
            let filtering = self.filtering(family);
            if self.told_filtering[n] != filtering {
                self.told_filtering[n] = filtering;
                self.actions.push(ReachAction::Filters { family, filtering });
            }
        }
    }
}

/// Keeps the tokens apart from those that others draw from the same seed.
const SEED_CONTEXT: &str = "lapwing 2026 reachability";
/// A question, a forwarded one and a datagram take three one-way trips; this allows for 600 ms each way and a loss.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failure, and at first when nobody could help.
const RETRY: Duration = Duration::from_secs(10);
/// A main's address goes bad seldom, and the connections of its homes tell sooner.
const RECHECK_OPEN: Duration = Duration::from_secs(600);
/// A person may open a port at any time; a new address is checked at once anyway.
const RECHECK_CLOSED: Duration = Duration::from_secs(900);
/// Failures in a row that make a main a home: one datagram in three lost three times over is one case in 27.
const FAILURES_MAX: u32 = 3;
/// Mains that must agree when there is no third party.
const MAINS_AGREEING: usize = 2;
/// Both families, and a mapped port each.
const TARGETS_MAX: usize = 4;
/// More mains than a node keeps connections to.
const MAINS_MAX: usize = 64;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use crate::Side;

    const MAIN: &str = "198.51.100.1:4001";

    #[test]
    fn a_datagram_from_a_stranger_makes_a_main() {
        let mut asker = Asker::new(false);
        let (third, _) = asker.asked();
        asker.arrives(third, "192.0.2.77:999");
        assert_eq!(asker.standing(), (Role::Main, false));
        assert_eq!(asker.filtering(), Filtering::EndpointIndependent);
        assert_eq!(asker.inner.open().collect::<Vec<_>>(), [asker.target]);
    }

    #[test]
    fn a_datagram_from_where_we_have_sent_to_proves_nothing() {
        let mut asker = Asker::new(false);
        let (third, other) = asker.asked();
        asker.answered(third, Ok(()));
        asker.answered(other, Ok(()));
        asker.arrives(third, MAIN);
        asker.wait();
        assert_eq!(asker.standing(), (Role::Home, false));
        assert_eq!(asker.filtering(), Filtering::AddressAndPortDependent);
    }

    #[test]
    fn a_nat_that_lets_in_other_ports_only_makes_a_home() {
        let mut asker = Asker::new(false);
        let (third, other) = asker.asked();
        asker.answered(third, Ok(()));
        asker.answered(other, Ok(()));
        asker.arrives(other, "198.51.100.1:5555");
        asker.wait();
        assert_eq!(asker.standing(), (Role::Home, false));
        assert_eq!(asker.filtering(), Filtering::AddressDependent);
    }

    #[test]
    fn the_only_main_suffices_where_there_is_no_nat() {
        let mut asker = Asker::new(true);
        let (third, other) = asker.asked();
        asker.answered(third, Err(WitnessRefusal::NoThirdParty));
        asker.arrives(other, "198.51.100.1:5555");
        assert_eq!(asker.standing(), (Role::Main, false));
    }

    #[test]
    fn of_two_mains_both_must_agree_where_there_is_no_third_party() {
        let mut asker = Asker::new(true);
        let second = PeerId::random();
        asker.inner.main_connected(second, asker.now);
        let (third, other) = asker.asked();
        asker.answered(third, Err(WitnessRefusal::NoThirdParty));
        asker.arrives(other, "198.51.100.1:5555");
        assert_eq!(asker.standing(), (Role::Home, true));
        let (third, other) = asker.asked();
        asker.answered(third, Err(WitnessRefusal::NoThirdParty));
        asker.arrives(other, "198.51.100.1:5555");
        assert_eq!(asker.standing(), (Role::Main, false));
    }

    #[test]
    fn a_main_stays_one_until_three_checks_in_a_row_fail() {
        let mut asker = Asker::new(false);
        let (third, _) = asker.asked();
        asker.arrives(third, "192.0.2.77:999");
        for failures in 1..=3 {
            asker.wait();
            let (third, other) = asker.asked();
            asker.answered(third, Ok(()));
            asker.answered(other, Ok(()));
            asker.wait();
            let role = if failures < 3 { Role::Main } else { Role::Home };
            assert_eq!(asker.standing(), (role, false), "after {failures}");
        }
    }

    #[test]
    fn silence_of_the_mains_is_no_failure() {
        let mut asker = Asker::new(false);
        let (third, _) = asker.asked();
        asker.arrives(third, "192.0.2.77:999");
        for _ in 0..10 {
            asker.wait();
        }
        assert_eq!(asker.standing(), (Role::Main, false));
    }

    #[test]
    fn the_first_node_is_a_main_until_somebody_finds_otherwise() {
        let mut asker = Asker::new(false);
        asker.inner.set_alone(true);
        assert_eq!(asker.standing(), (Role::Main, true));
        let (third, other) = asker.asked();
        asker.answered(third, Ok(()));
        asker.answered(other, Ok(()));
        asker.wait();
        assert_eq!(asker.standing(), (Role::Home, false));
    }

    #[test]
    fn a_pinned_role_stays_and_nobody_is_asked() {
        let now = Instant::now();
        for role in [Role::Home, Role::Main] {
            let mut inner = Reachability::new(Some(role), [1; 32]);
            inner.set_alone(true);
            inner.set_targets([(addr("203.0.113.9:4001"), true)], now);
            inner.main_connected(PeerId::random(), now);
            let provisional = false;
            let stands = ReachAction::Stands(Standing { role, provisional });
            assert_eq!(inner.poll(now), [stands]);
            assert_eq!(inner.next_at(), None);
        }
    }

    #[test]
    fn forged_and_unasked_datagrams_prove_nothing() {
        let mut asker = Asker::new(false);
        let (third, _) = asker.asked();
        let mut forged = witness(third);
        forged[20] ^= 1;
        let stranger = addr("192.0.2.77:999");
        assert!(asker.inner.on_datagram(stranger, &forged, asker.now));
        assert!(
            !asker
                .inner
                .on_datagram(stranger, &witness(Token([9; 16])), asker.now)
        );
        assert!(!asker.inner.on_datagram(stranger, b"garbage", asker.now));
        assert_eq!(asker.standing(), (Role::Home, true));
    }

    #[test]
    fn an_open_address_stays_until_there_is_another_of_its_family_or_another_network() {
        let mut asker = Asker::new(false);
        let (third, _) = asker.asked();
        asker.arrives(third, "192.0.2.77:999");
        for others in [vec![], vec![(addr("[2001:db8::9]:4001"), true)]] {
            asker.inner.set_targets(others, asker.now);
            assert_eq!(asker.inner.open().collect::<Vec<_>>(), [asker.target]);
            assert_eq!(asker.standing(), (Role::Main, false));
        }
        asker
            .inner
            .set_targets([(addr("203.0.113.9:7777"), false)], asker.now);
        assert_eq!(asker.standing(), (Role::Home, true));

        let mut asker = Asker::new(false);
        let (third, _) = asker.asked();
        asker.arrives(third, "192.0.2.77:999");
        asker.inner.network_changed();
        asker.inner.set_targets([], asker.now);
        assert_eq!(asker.standing(), (Role::Home, true));
    }

    #[test]
    fn an_address_that_was_not_found_open_goes_with_who_told_of_it() {
        let mut asker = Asker::new(false);
        let (third, other) = asker.asked();
        asker.answered(third, Ok(()));
        asker.answered(other, Ok(()));
        asker.wait();
        assert_eq!(asker.standing(), (Role::Home, false));
        asker.inner.set_targets([], asker.now);
        assert_eq!(asker.inner.next_at(), None);
    }

    #[test]
    fn a_change_is_told_once() {
        let mut asker = Asker::new(false);
        let (third, _) = asker.asked();
        assert!(
            asker
                .inner
                .on_datagram(addr("192.0.2.77:999"), &witness(third), asker.now)
        );
        let actions = asker.inner.poll(asker.now);
        assert_eq!(actions.len(), 2, "the role and the filter: {actions:?}");
        assert!(asker.inner.poll(asker.now).is_empty());
    }

    /// A node with one target and one main to ask.
    struct Asker {
        inner: Reachability,
        target: SocketAddr,
        now: Instant,
    }

    impl Asker {
        fn new(own: bool) -> Self {
            let now = Instant::now();
            let mut inner = Reachability::new(None, [1; 32]);
            let target = addr("203.0.113.9:4001");
            inner.sent(addr(MAIN), now);
            inner.set_targets([(target, own)], now);
            inner.main_connected(PeerId::random(), now);
            Self { inner, target, now }
        }

        /// The tokens of the next two questions: for a third party, and for another port.
        fn asked(&mut self) -> (Token, Token) {
            self.now = self.inner.next_at().unwrap().max(self.now);
            let tokens: Vec<_> = self
                .inner
                .poll(self.now)
                .into_iter()
                .filter_map(|action| match action {
                    ReachAction::Ask {
                        message: WitnessMessage::Ask { token, stance, .. },
                        ..
                    } => Some((stance, token)),
                    _ => None,
                })
                .collect();
            let [(Stance::ThirdParty, third), (Stance::OtherPort, other)] = tokens[..] else {
                panic!("one question for each stance: {tokens:?}");
            };
            (third, other)
        }

        fn answered(&mut self, token: Token, sent: Result<(), WitnessRefusal>) {
            let id = ProbeKey::new(&token).id();
            let main = self.inner.checks[&id].main;
            self.inner
                .on_message(&main, &WitnessMessage::Answer { token, sent }, self.now);
        }

        fn arrives(&mut self, token: Token, from: &str) {
            // Addresses of a main are sent to for as long as it is connected.
            self.inner.sent(addr(MAIN), self.now);
            assert!(self.inner.on_datagram(addr(from), &witness(token), self.now));
        }

        fn wait(&mut self) {
            self.now = self.inner.next_at().unwrap().max(self.now);
            self.inner.sent(addr(MAIN), self.now);
            self.inner.finish(self.target, self.now);
        }

        fn standing(&self) -> (Role, bool) {
            let standing = self.inner.standing();
            (standing.role, standing.provisional)
        }

        fn filtering(&self) -> Filtering {
            self.inner.filtering(Family::V4)
        }
    }

    fn witness(token: Token) -> Vec<u8> {
        ProbeKey::new(&token).seal(&Probe {
            kind: ProbeKind::Witness,
            from: Side::Answerer,
            transaction: 0,
            seen: None,
        })
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
