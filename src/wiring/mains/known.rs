//! What is known of the mains that a relay was told of: who was found where, whom to ask about that, and who is not reached.
//!
//! Pure: it asks nobody and reads no clock. [`Known::questions`] says what to ask, and what comes of that it is told by
//! [`Known::on_named`], [`Known::on_answered`] and [`Known::on_gateway`].

use std::collections::BTreeSet;
use std::fmt;

use lapwing_base::{PeerId, Role};
use lapwing_federation::{MainAddress, NamedMain};

use crate::relay::{MainSource, WantedMains};

/// Mains that one name or one gateway leads to, and that all names do: each of them is asked again and again.
pub(super) const FOUND_MAX: usize = 64;
const NAMED_MAX: usize = 1024;

/// What was found last.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// In the order in which they were named.
    sources: Vec<Source>,
    at_gateway: Vec<PeerId>,
    wanted: WantedMains,
}

/// Something to find out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Question {
    /// Where the mains are that the domain name system has under a name.
    Name(String),
    /// Who is at an address.
    Address(MainAddress),
    /// Which mains gateways know, where there are any.
    Gateway,
}

/// What a person or a program has named, and what has come of looking.
#[derive(Debug)]
struct Source {
    place: MainSource,
    /// Where its mains are to be, the most wanted first: one at an address, as many as the domain name system says at a name.
    targets: Vec<Target>,
    /// Why the domain name system has not said that when it was asked last.
    error: Option<String>,
}

/// Where one main is to be.
#[derive(Debug)]
struct Target {
    at: MainAddress,
    /// Who has answered there last. It may be there still when nobody answers for a while.
    found: Option<PeerId>,
    /// Why nobody has answered when it was asked last.
    error: Option<String>,
}

impl Known {
    /// Takes in what is wanted now; what was found at places that stay is kept.
    pub(super) fn want(&mut self, wanted: WantedMains) {
        let mut before = std::mem::take(&mut self.sources);
        let places = wanted.sources.iter().cloned();
        self.sources = places
            .map(
                |place| match before.iter().position(|source| source.place == place) {
                    Some(known) => before.swap_remove(known),
                    None => Source::new(place),
                },
            )
            .collect();
        self.wanted = wanted;
    }

    /// All that there is to be asked but for gateways, nothing twice.
    pub(super) fn questions(&self) -> Vec<Question> {
        let mut questions = Vec::new();
        let mut ask = |question| {
            if !questions.contains(&question) {
                questions.push(question);
            }
        };
        for source in &self.sources {
            // What was known of a name is asked beside it: the domain name system may be slow, or away.
            if let MainSource::Srv(name) = &source.place {
                ask(Question::Name(name.clone()));
            }
            for target in &source.targets {
                ask(Question::Address(target.at.clone()));
            }
        }
        questions
    }

    /// Whether anything would come of the answer to a question: it may have been given up since it was asked.
    pub(super) fn asks(&self, question: &Question) -> bool {
        let mut sources = self.sources.iter();
        match question {
            Question::Name(name) => sources.any(|source| source.is_named(name)),
            Question::Address(at) => {
                sources.any(|source| source.targets.iter().any(|target| target.at == *at))
            }
            Question::Gateway => true,
        }
    }

    /// The domain name system has said where the mains of a name are, the most wanted first, or why it has not. Who was found
    /// where one is still to be stays known; where none is to be any more nobody is, and where nothing was said all stays.
    /// Returns what is to be asked because of that: who is where nobody was asked before.
    pub(super) fn on_named(&mut self, name: &str, said: &Result<Vec<MainAddress>, String>) -> Vec<Question> {
        let others = self.sources.iter().filter(|source| !source.is_named(name));
        let others: usize = others.map(|source| source.targets.len()).sum();
        let room = FOUND_MAX.min(NAMED_MAX.saturating_sub(others));
        let mut questions = Vec::new();
        for source in self.sources.iter_mut().filter(|source| source.is_named(name)) {
            match said {
                Ok(addresses) => {
                    let fresh = source.be_at(addresses.iter().take(room));
                    questions.extend(fresh.into_iter().map(Question::Address));
                }
                Err(error) => source.error = Some(error.clone()),
            }
        }
        questions
    }

    /// Somebody has answered at an address, or nobody has.
    pub(super) fn on_answered(&mut self, at: &MainAddress, answer: &Result<PeerId, String>) {
        let targets = self.sources.iter_mut().flat_map(|source| &mut source.targets);
        for target in targets.filter(|target| target.at == *at) {
            match answer {
                Ok(peer) => (target.found, target.error) = (Some(*peer), None),
                // Who was found stays: it may be there still.
                Err(error) => target.error = Some(error.clone()),
            }
        }
    }

    /// Gateways have said which mains they know.
    pub(super) fn on_gateway(&mut self, mut mains: Vec<PeerId>) {
        mains.truncate(FOUND_MAX);
        self.at_gateway = mains;
    }

    /// In the order in which they were named, none twice.
    pub(super) fn mains(&self, me: PeerId) -> Vec<PeerId> {
        let sources = self.sources.iter().enumerate();
        let found = sources.flat_map(|(place, source)| {
            let found = source.targets.iter().filter_map(|target| target.found);
            found.filter(move |peer| !self.wanted.is_removed(*peer, place))
        });
        let at_gateway = self.at_gateway.iter().copied();
        let at_gateway = at_gateway.filter(|peer| !self.wanted.removed.contains_key(peer));
        let mut seen = BTreeSet::from([me]);
        found
            .chain(at_gateway)
            .filter(|peer| seen.insert(*peer))
            .collect()
    }

    /// What people are shown of it: each place where a main is to be, and each name under which there is none.
    pub(super) fn named(&self) -> Vec<NamedMain> {
        let mut all = Vec::new();
        for source in &self.sources {
            all.extend(source.targets.iter().map(|target| NamedMain {
                given: target.at.to_string(),
                found: target.found.into_iter().collect(),
                error: target.error.clone(),
            }));
            if source.targets.is_empty() {
                all.push(NamedMain {
                    given: source.place.to_string(),
                    found: Vec::new(),
                    error: source.error.clone(),
                });
            }
        }
        all
    }

    /// Where mains are to be that are not connected, also where nobody has ever answered, each with why nobody has.
    pub(super) fn missing(&self, me: PeerId, neighbours: &BTreeSet<PeerId>) -> Vec<String> {
        let is_settled = |peer: PeerId, place| {
            peer == me || self.wanted.is_removed(peer, place) || neighbours.contains(&peer)
        };
        let mut missing = Vec::new();
        for (place, source) in self.sources.iter().enumerate() {
            let targets = source.targets.iter();
            let lacking = targets.filter(|target| !target.found.is_some_and(|peer| is_settled(peer, place)));
            missing.extend(lacking.map(|target| with_reason(&target.at, target.error.as_deref())));
            if source.targets.is_empty() {
                missing.push(with_reason(&source.place, source.error.as_deref()));
            }
        }
        missing
    }

    /// Whether a node is connected with all that it is to be: a home with one.
    pub(super) fn is_whole(&self, role: Role, me: PeerId, neighbours: &BTreeSet<PeerId>) -> bool {
        let mains = self.mains(me);
        match role {
            Role::Home => mains.iter().any(|main| neighbours.contains(main)),
            Role::Main => {
                mains.iter().all(|main| neighbours.contains(main)) && self.missing(me, neighbours).is_empty()
            }
        }
    }
}

impl Source {
    fn new(place: MainSource) -> Self {
        let targets = match &place {
            MainSource::Address(at) => vec![Target::new(at.clone())],
            MainSource::Srv(_) => Vec::new(),
        };
        Self {
            place,
            targets,
            error: None,
        }
    }

    fn is_named(&self, name: &str) -> bool {
        matches!(&self.place, MainSource::Srv(own) if own == name)
    }

    /// Its mains are to be at these addresses; returns those that are news.
    fn be_at<'a>(&mut self, addresses: impl Iterator<Item = &'a MainAddress>) -> Vec<MainAddress> {
        let mut before = std::mem::take(&mut self.targets);
        let mut fresh = Vec::new();
        for at in addresses {
            if self.targets.iter().any(|target| target.at == *at) {
                continue;
            }
            let known = before.iter().position(|target| target.at == *at);
            let target = known.map(|known| before.swap_remove(known));
            self.targets.push(target.unwrap_or_else(|| {
                fresh.push(at.clone());
                Target::new(at.clone())
            }));
        }
        let nowhere = || "the domain name system has no main there".to_owned();
        self.error = self.targets.is_empty().then(nowhere);
        fresh
    }
}

impl Target {
    const fn new(at: MainAddress) -> Self {
        Self {
            at,
            found: None,
            error: None,
        }
    }
}

fn with_reason(place: &impl fmt::Display, error: Option<&str>) -> String {
    match error {
        Some(error) => format!("{place} ({error})"),
        None => place.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NAME: &str = "_lapwing._tcp.example.org";

    fn at(place: &str) -> MainAddress {
        place.parse().unwrap()
    }

    /// Places, each with who has answered there or why nobody has.
    fn known(sources: &[(&str, Option<PeerId>)]) -> Known {
        let mut known = Known::default();
        known.want(wanted(&Vec::from_iter(sources.iter().map(|(place, _)| *place))));
        for (place, found) in sources {
            let answer = found.ok_or_else(|| "Connection refused".to_owned());
            known.on_answered(&at(place), &answer);
        }
        known
    }

    /// The same of one name that leads to these.
    fn known_by_name(targets: &[(&str, Option<PeerId>)]) -> Known {
        let mut known = Known::default();
        known.want(wanted(&[&format!("srv:{NAME}")]));
        let places = targets.iter().map(|(place, _)| at(place));
        known.on_named(NAME, &Ok(places.collect()));
        for (place, found) in targets {
            let answer = found.ok_or_else(|| "Connection refused".to_owned());
            known.on_answered(&at(place), &answer);
        }
        known
    }

    fn wanted(places: &[&str]) -> WantedMains {
        WantedMains {
            sources: places.iter().map(|place| place.parse().unwrap()).collect(),
            removed: BTreeMap::new(),
        }
    }

    fn peers<const N: usize>() -> [PeerId; N] {
        [(); N].map(|()| PeerId::random())
    }

    fn missing(known: &Known, me: PeerId, neighbours: &[PeerId]) -> Vec<String> {
        known.missing(me, &neighbours.iter().copied().collect())
    }

    #[test]
    fn mains_keep_the_order_in_which_they_were_named() {
        let [a, b, c, gone, me] = peers();
        let mut known = known(&[("b:1", Some(b)), ("a:1", Some(a)), ("a:2", Some(me))]);
        known.on_gateway(vec![a, c, gone]);
        known.wanted.removed = BTreeMap::from([(gone, 3)]);
        assert_eq!(known.mains(me), [b, a, c]);
    }

    #[test]
    fn what_was_found_at_a_place_is_kept_while_others_come_and_go() {
        let [a, b, me] = peers();
        let mut known = known(&[("a:1", Some(a)), ("b:1", Some(b))]);
        known.want(wanted(&["c:1", "b:1"]));
        assert_eq!(known.mains(me), [b]);
    }

    #[test]
    fn only_the_mains_that_are_not_reached_are_named_with_the_reason() {
        let [up, down, me] = peers();
        let known = known(&[
            ("up:1", Some(up)),
            ("down:1", Some(down)),
            ("away:1", None),
            ("me:1", Some(me)),
        ]);
        assert_eq!(
            missing(&known, me, &[up]),
            ["down:1", "away:1 (Connection refused)"]
        );
        let up = BTreeSet::from([up]);
        assert!(!known.is_whole(Role::Main, me, &up));
        assert!(known.is_whole(Role::Home, me, &up), "a home needs one");
        assert!(!known.is_whole(Role::Home, me, &BTreeSet::new()));
    }

    #[test]
    fn a_main_that_does_not_answer_for_a_while_stays_known_while_the_name_leads_to_it() {
        let [a, b, me] = peers();
        let mut known = known_by_name(&[("a:1", Some(a)), ("b:1", Some(b))]);
        known.on_answered(&at("a:1"), &Err("Connection refused".to_owned()));
        let said = Ok(vec![at("b:1"), at("c:1"), at("a:1")]);
        assert_eq!(known.on_named(NAME, &said), [Question::Address(at("c:1"))]);
        assert_eq!(known.mains(me), [b, a], "in the order that the name has now");
        assert_eq!(missing(&known, me, &[b]), ["c:1", "a:1 (Connection refused)"]);
        assert_eq!(missing(&known, me, &[a, b]), ["c:1"], "its session stands");
        known.on_named(NAME, &Err("no connections available".to_owned()));
        assert_eq!(known.mains(me), [b, a], "nothing was said of them");
    }

    #[test]
    fn a_main_is_forgotten_once_the_name_does_not_lead_to_it_or_another_answers_in_its_place() {
        let [a, b, other, me] = peers();
        let mut known = known_by_name(&[("a:1", Some(a)), ("b:1", Some(b))]);
        known.on_answered(&at("b:1"), &Ok(other));
        assert_eq!(known.mains(me), [a, other]);
        known.on_named(NAME, &Ok(vec![at("b:1")]));
        assert_eq!(known.mains(me), [other]);
        known.on_named(NAME, &Ok(Vec::new()));
        assert_eq!(known.mains(me), []);
        assert!(!known.is_whole(Role::Main, me, &BTreeSet::new()));
    }

    #[test]
    fn each_main_that_a_name_leads_to_is_missing_by_itself() {
        let [a, me] = peers();
        let known = known_by_name(&[("a:1", Some(a)), ("me:1", Some(me)), ("away:1", None)]);
        assert_eq!(missing(&known, me, &[a]), ["away:1 (Connection refused)"]);
        assert!(!known.is_whole(Role::Main, me, &BTreeSet::from([a])));
        let shown = known.named();
        let shown = shown
            .iter()
            .map(|named| (named.given.as_str(), named.found.clone()));
        assert_eq!(
            Vec::from_iter(shown),
            [("a:1", vec![a]), ("me:1", vec![me]), ("away:1", vec![])]
        );
    }

    #[test]
    fn a_name_that_leads_nowhere_is_missing_and_shown_with_the_reason() {
        let me = PeerId::random();
        let mut known = known_by_name(&[]);
        let name = format!("srv:{NAME}");
        let reason = "the domain name system has no main there";
        assert_eq!(missing(&known, me, &[]), [format!("{name} ({reason})")]);
        known.on_named(NAME, &Err("request timed out".to_owned()));
        assert_eq!(
            known.named(),
            [NamedMain {
                given: name,
                found: vec![],
                error: Some("request timed out".to_owned())
            }]
        );
    }

    #[test]
    fn a_place_is_asked_once_however_often_it_was_named_and_beside_the_name_that_leads_to_it() {
        let mut known = known_by_name(&[("a:1", None), ("b:1", None)]);
        known.want(wanted(&["b:1", &format!("srv:{NAME}"), "b:1"]));
        let questions = known.questions();
        assert_eq!(
            questions,
            [
                Question::Address(at("b:1")),
                Question::Name(NAME.to_owned()),
                Question::Address(at("a:1"))
            ]
        );
        assert!(questions.iter().all(|question| known.asks(question)));
        known.want(wanted(&["b:1"]));
        assert!(known.asks(&questions[0]) && !known.asks(&questions[1]) && !known.asks(&questions[2]));
    }

    #[test]
    fn a_name_leads_to_so_many_mains_at_most_and_to_none_twice() {
        let mut known = known_by_name(&[]);
        let places = (0..2 * FOUND_MAX).map(|number| at(&format!("a:{}", 1 + number / 2)));
        known.on_named(NAME, &Ok(places.collect()));
        assert_eq!(known.sources[0].targets.len(), FOUND_MAX / 2);
    }
}
