//! Which network this machine is in, and whether it has moved to another. Looks at no interface itself.

use crate::NetworkPrint;

/// The network that this machine is in, or was in last.
#[derive(Debug, Default)]
pub struct Surroundings {
    last: Option<NetworkPrint>,
}

impl Surroundings {
    /// Where this machine is now, `None` while there is no network. Says whether it has moved: on the way from one
    /// network to another there is often none for a while, and after an outage the network may be the same.
    pub fn look(&mut self, present: Option<NetworkPrint>) -> bool {
        let Some(present) = present else {
            return false;
        };
        self.last.replace(present).is_some_and(|before| before != present)
    }

    /// The network that this machine is in, or was in last; one without a name at first.
    pub fn network(&self) -> NetworkPrint {
        self.last.unwrap_or(NetworkPrint(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: NetworkPrint = NetworkPrint(1);
    const OFFICE: NetworkPrint = NetworkPrint(2);

    #[test]
    fn down_and_then_up_elsewhere_is_a_move() {
        let mut around = Surroundings::default();
        assert!(!around.look(None));
        assert!(!around.look(Some(HOME)), "there was nothing to move from");
        assert!(!around.look(None), "nobody can be asked there");
        assert_eq!(around.network(), HOME);
        assert!(around.look(Some(OFFICE)));
        assert_eq!(around.network(), OFFICE);
    }

    #[test]
    fn an_outage_is_no_move() {
        let mut around = Surroundings::default();
        around.look(Some(HOME));
        for present in [None, Some(HOME), Some(HOME), None, None, Some(HOME)] {
            assert!(!around.look(present));
        }
        assert!(around.look(Some(OFFICE)));
        assert!(!around.look(Some(OFFICE)));
    }
}
