//! Which algorithm chooses among the instances of which service, as its owner wants it. Chooses none itself.

use std::collections::BTreeMap;

use crate::{Algorithm, ServiceName};

/// What a node is told of how to spread calls. Default: round robin for every service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Balancing {
    /// Of services that are not named.
    pub default: Algorithm,
    /// Of those that are.
    pub services: BTreeMap<ServiceName, Algorithm>,
}

impl Balancing {
    /// How the calls of a service are spread.
    pub fn of(&self, service: &ServiceName) -> Algorithm {
        self.services.get(service).copied().unwrap_or(self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_not_named_has_the_algorithm_of_all() {
        let [blog, shop]: [ServiceName; 2] = ["blog", "shop"].map(|name| name.parse().unwrap());
        assert_eq!(Balancing::default().of(&blog), Algorithm::RoundRobin);
        let balancing = Balancing {
            default: Algorithm::Random,
            services: [(shop.clone(), Algorithm::P2cEwma)].into(),
        };
        assert_eq!(balancing.of(&blog), Algorithm::Random);
        assert_eq!(balancing.of(&shop), Algorithm::P2cEwma);
    }
}
