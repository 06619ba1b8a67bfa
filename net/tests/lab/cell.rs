//! One cell of a table: a pair of homes, one of which asks the other for an echo, and the path that the pair comes to.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use lapwing_base::Protocol;
use lapwing_net::{Path, RelayedBecause};

use crate::kinds::Expected;
use crate::nodes::LabNode;

/// From a home to the internet, one way; between two homes it is four times as much there and back.
pub(crate) const DELAY: Duration = Duration::from_millis(10);

/// How long the first answer may take, by whatever path.
const ANSWERED: Duration = Duration::from_secs(15);

/// Who asks whom, and what must come of it.
pub(crate) struct Cell<'a> {
    pub(crate) from: &'a str,
    pub(crate) a: &'a LabNode,
    pub(crate) to: &'a str,
    pub(crate) b: &'a LabNode,
    pub(crate) expected: Expected,
}

impl Cell<'_> {
    /// The head of the table whose lines [`Self::run`] prints.
    pub(crate) fn print_head() {
        println!(
            "\n{:25} {:25} {:8} {:>9} {:>9} {:>6}  address, or reason",
            "from", "to", "path", "answered", "direct", "RTT"
        );
    }

    /// Asks, waits for the path that must come, and prints a line; how long after the first answer the path was direct.
    /// Nothing where it is relayed, as it must be.
    pub(crate) fn run(&self) -> Result<Option<Duration>, String> {
        let (a, b) = (self.a, self.b);
        let begun = Instant::now();
        let answered = a.ask(b, ANSWERED);
        let answered_after = begun.elapsed();
        let mut direct = None;
        let mut because = None;
        while begun.elapsed() < self.patience() && direct.is_none() {
            let peer = a.peer(b);
            if let Some(link) = peer.as_ref().and_then(|peer| peer.link)
                && link.path == Path::Direct
            {
                direct = Some((begun.elapsed(), peer.and_then(|peer| peer.address)));
                break;
            }
            because = peer.and_then(|peer| peer.relayed_because);
            if self.expected == Expected::Relayed && because.is_some_and(|because| !because.is_transient()) {
                break;
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        let upgraded = direct
            .as_ref()
            .map(|(direct, _)| direct.saturating_sub(answered_after));
        let rtts = upgraded.map(|upgraded| upgraded.as_secs_f64() / (DELAY * 4).as_secs_f64());
        let ms = |duration: Duration| format!("{:.0} ms", duration.as_secs_f64() * 1e3);
        let path = a
            .path(b)
            .map_or_else(|| "none".to_owned(), |path| format!("{path:?}"));
        let dash = || "-".to_owned();
        let remark = match &direct {
            Some((_, address)) => address.as_ref().map(ToString::to_string),
            None => because.map(|because| because.to_string()),
        };
        println!(
            "{:25} {:25} {path:8} {:>9} {:>9} {:>6}  {}",
            self.from,
            self.to,
            ms(answered_after),
            direct.as_ref().map_or_else(dash, |(at, _)| ms(*at)),
            rtts.map_or_else(dash, |rtts| format!("{rtts:.1}")),
            remark.unwrap_or_default(),
        );
        let held = match (&answered, self.expected, &direct) {
            (Err(error), _, _) => Err(format!("no answer: {error}")),
            (Ok(_), Expected::Direct | Expected::Guessed, Some(_)) => Ok(()),
            (Ok(_), Expected::DirectOver(family), Some((_, Some(address)))) => {
                let ip = address.iter().find_map(|part| match part {
                    Protocol::Ip4(ip) => Some(IpAddr::from(ip)),
                    Protocol::Ip6(ip) => Some(IpAddr::from(ip)),
                    _ => None,
                });
                if ip.is_some_and(|ip| family.has(ip)) {
                    Ok(())
                } else {
                    Err(format!("{family:?} was expected, and it is {address}"))
                }
            }
            (Ok(_), Expected::Relayed, None) if because.is_some_and(is_a_reason) => Ok(()),
            (Ok(_), expected, direct) => Err(format!(
                "{expected:?} was expected, and it is {direct:?} {because:?}"
            )),
        };
        held.map(|()| upgraded)
            .map_err(|why| format!("{} to {}: {why}\n{}", self.from, self.to, self.explained()))
    }

    /// Runs cells that take their time, all at once. A node guesses with two others at a time, and so is in two of them at
    /// most.
    pub(crate) fn run_each_at_once(cells: &[Self]) -> Vec<Result<Option<Duration>, String>> {
        thread::scope(|scope| {
            let running: Vec<_> = cells.iter().map(|cell| scope.spawn(|| cell.run())).collect();
            running.into_iter().map(|cell| cell.join().unwrap()).collect()
        })
    }

    /// The same; what was wrong.
    pub(crate) fn run_at_once(cells: &[Self]) -> Vec<String> {
        Self::run_each_at_once(cells)
            .into_iter()
            .filter_map(Result::err)
            .collect()
    }

    fn patience(&self) -> Duration {
        match self.expected {
            Expected::Direct | Expected::DirectOver(_) => Duration::from_secs(10),
            Expected::Guessed => Duration::from_secs(60),
            // Time for two attempts, unless it is known that there is no hope.
            Expected::Relayed => Duration::from_secs(10),
        }
    }

    /// What both sides know of themselves and have tried.
    fn explained(&self) -> String {
        let mut lines = Vec::new();
        for (node, other) in [(self.a, self.b), (self.b, self.a)] {
            lines.push(format!("  {}: {:?}", node.name, node.reach()));
            let (network, peer) = (node.network.clone(), other.id());
            let tried = node.run(async move { network.candidates(peer).await });
            lines.extend(tried.iter().map(|row| format!("    {row:?}")));
        }
        lines.join("\n")
    }
}

/// Whether it tells why a path is relayed, and not only that it is not known yet.
fn is_a_reason(because: RelayedBecause) -> bool {
    !matches!(because, RelayedBecause::NotTriedYet | RelayedBecause::Trying)
}
