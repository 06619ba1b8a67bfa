//! What a node offers, and whether it is what a call wants.

use crate::{CallError, Constraint, ErrorCode, ServiceName, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A service of one node, as it is announced.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// What it is called.
    pub name: ServiceName,
    /// Its version.
    pub version: Version,
    /// What can be called in it; none where the node does not know, and every name is passed on.
    pub methods: BTreeSet<String>,
    /// What it works on, in words of its own: a call may want one that has them.
    pub resources: BTreeSet<String>,
    /// Whether its node takes it for able to answer.
    pub is_healthy: bool,
}

/// What a call wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// The service.
    pub service: ServiceName,
    /// What is called in it; empty where the only method that it has is meant.
    pub method: String,
    /// Which versions will do.
    pub versions: Constraint,
    /// What it has to work on.
    pub resources: BTreeSet<String>,
}

/// How well a service is what is wanted, the best first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Fit {
    /// It has these resources and no others.
    Exact,
    /// It has others too.
    More,
}

/// Why a service is not what is wanted.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Unfit {
    /// It is called otherwise.
    Name,
    /// It does not have these resources.
    Resources,
    /// It has another version.
    Version,
    /// It has no such method.
    Method,
}

impl Unfit {
    /// What whoever wanted it is told.
    pub fn error(self, wanted: &Wanted) -> CallError {
        let name = &wanted.service;
        let (code, said) = match self {
            Self::Name => (
                ErrorCode::ServiceNotFound,
                format!("service `{name}` was not announced"),
            ),
            Self::Resources => {
                let said = format!("service `{name}` was not announced with these resources");
                (ErrorCode::ServiceNotFound, said)
            }
            Self::Version => {
                let said = format!(
                    "service `{name}` was not announced in a version that is {}",
                    wanted.versions
                );
                (ErrorCode::VersionUnsatisfied, said)
            }
            Self::Method if wanted.method.is_empty() => {
                let said = format!(
                    "service `{name}` does not announce that it has exactly one method: say which, as in `{name}.METHOD`"
                );
                (ErrorCode::MethodNotFound, said)
            }
            Self::Method => {
                let said = format!("service `{name}` has no method `{}`", wanted.method);
                (ErrorCode::MethodNotFound, said)
            }
        };
        CallError::new(code, said)
    }
}

/// Something is announced that is too much.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Methods or resources.
    #[error("service `{service}` has {count} {what}; at most {max} are announced")]
    TooMany {
        /// Which.
        service: ServiceName,
        /// `methods` or `resources`.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// One of them.
    #[error(
        "service `{service}` has a name of {length} bytes among its {what}; they have between 1 and {NAME_MAX}"
    )]
    Name {
        /// Which.
        service: ServiceName,
        /// `methods` or `resources`.
        what: &'static str,
        /// How long it is.
        length: usize,
    },
}

/// More of either would not fit an announcement with other services beside it.
const METHODS_MAX: usize = 256;
const RESOURCES_MAX: usize = 64;

/// Bytes of a method's or resource's name.
pub(crate) const NAME_MAX: usize = 128;

impl Service {
    /// A service of this name, of which nothing else is known.
    pub fn new(name: ServiceName) -> Self {
        Self {
            name,
            version: Version::default(),
            methods: BTreeSet::new(),
            resources: BTreeSet::new(),
            is_healthy: true,
        }
    }

    /// Whether it can be announced.
    ///
    /// # Errors
    /// What is too much.
    pub fn check(&self) -> Result<(), ServiceError> {
        let lists = [
            ("methods", &self.methods, METHODS_MAX),
            ("resources", &self.resources, RESOURCES_MAX),
        ];
        for (what, names, max) in lists {
            let service = || self.name.clone();
            if names.len() > max {
                let count = names.len();
                return Err(ServiceError::TooMany {
                    service: service(),
                    what,
                    count,
                    max,
                });
            }
            let wrong = names
                .iter()
                .map(String::len)
                .find(|length| !(1..=NAME_MAX).contains(length));
            if let Some(length) = wrong {
                return Err(ServiceError::Name {
                    service: service(),
                    what,
                    length,
                });
            }
        }
        Ok(())
    }

    /// The method that is meant by a name, or by none; `None` where there is no such, or which is not known.
    pub fn method<'a>(&'a self, named: &'a str) -> Option<&'a str> {
        match (named, self.methods.len()) {
            ("", 1) => self.methods.first().map(String::as_str),
            ("", _) => None,
            (named, 0) => Some(named),
            (named, _) => self.methods.get(named).map(String::as_str),
        }
    }

    /// How well it is what is wanted.
    ///
    /// # Errors
    /// The most that speaks against it.
    pub fn fit(&self, wanted: &Wanted) -> Result<Fit, Unfit> {
        if self.name != wanted.service {
            Err(Unfit::Name)
        } else if !wanted.resources.is_subset(&self.resources) {
            Err(Unfit::Resources)
        } else if !wanted.versions.takes(&self.version) {
            Err(Unfit::Version)
        } else if self.method(&wanted.method).is_none() {
            Err(Unfit::Method)
        } else if wanted.resources.is_empty() || self.resources.len() == wanted.resources.len() {
            // Whoever wants none takes any.
            Ok(Fit::Exact)
        } else {
            Ok(Fit::More)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn process(methods: &[&str], resources: &[&str]) -> Service {
        Service {
            methods: set(methods),
            resources: set(resources),
            ..Service::new("process".parse().unwrap())
        }
    }

    fn wanted(method: &str, resources: &[&str]) -> Wanted {
        Wanted {
            service: "process".parse().unwrap(),
            method: method.to_owned(),
            versions: Constraint::default(),
            resources: set(resources),
        }
    }

    #[test]
    fn the_same_resources_fit_better_than_more_of_them_and_fewer_do_not() {
        let both = process(&[], &["model-a", "model-b"]);
        assert_eq!(both.fit(&wanted("run", &["model-a", "model-b"])), Ok(Fit::Exact));
        assert_eq!(both.fit(&wanted("run", &["model-a"])), Ok(Fit::More));
        assert_eq!(both.fit(&wanted("run", &["model-c"])), Err(Unfit::Resources));
        assert!(Fit::Exact < Fit::More);
    }

    #[test]
    fn whoever_wants_no_resources_takes_any() {
        assert_eq!(
            process(&[], &["model-a"]).fit(&wanted("run", &[])),
            Ok(Fit::Exact)
        );
    }

    #[test]
    fn a_service_has_the_methods_that_it_names_and_any_where_it_names_none() {
        assert_eq!(process(&["run"], &[]).fit(&wanted("run", &[])), Ok(Fit::Exact));
        assert_eq!(
            process(&["run"], &[]).fit(&wanted("stop", &[])),
            Err(Unfit::Method)
        );
        assert_eq!(process(&[], &[]).fit(&wanted("stop", &[])), Ok(Fit::Exact));
    }

    #[test]
    fn the_only_method_of_a_service_needs_no_name() {
        assert_eq!(process(&["run"], &[]).method(""), Some("run"));
        assert_eq!(process(&["run", "stop"], &[]).method(""), None);
        let unnamed = wanted("", &[]);
        for methods in [&[][..], &["run", "stop"]] {
            let unfit = process(methods, &[]).fit(&unnamed).unwrap_err();
            let error = unfit.error(&unnamed);
            assert_eq!((unfit, error.code), (Unfit::Method, ErrorCode::MethodNotFound));
            assert!(
                error.message.ends_with("say which, as in `process.METHOD`"),
                "{error}"
            );
        }
    }

    #[test]
    fn another_version_does_not_do() {
        let mut wanted = wanted("run", &[]);
        wanted.versions = ">=2".parse().unwrap();
        assert_eq!(process(&[], &[]).fit(&wanted), Err(Unfit::Version));
    }

    #[test]
    fn what_is_too_much_is_not_announced() {
        assert_eq!(process(&["run"], &["model-a"]).check(), Ok(()));
        let many: Vec<String> = (0..=METHODS_MAX).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(matches!(
            process(&many, &[]).check(),
            Err(ServiceError::TooMany { count: 257, .. })
        ));
        let long = "x".repeat(NAME_MAX + 1);
        assert!(matches!(
            process(&[], &[&long]).check(),
            Err(ServiceError::Name { length: 129, .. })
        ));
        assert!(matches!(
            process(&[""], &[]).check(),
            Err(ServiceError::Name { length: 0, .. })
        ));
    }
}
