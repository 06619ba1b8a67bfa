//! Settings of the federation, which a node and a relay share: what is offered, and with whom there is anything to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use lapwing::ServiceSpec;
use lapwing_base::ClusterId;
use lapwing_federation::{
    Algorithm, Balancing, Boundary, ParseAlgorithmError, ParseNameError, Policy, ServiceName, ServiceRule,
    Token, TokenError,
};

/// What can be set of a node's part in the federation.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FederationFlags {
    /// Service to offer, at http://HOST:PORT/PATH (JSON-RPC 2.0), exec:COMMAND (JSON-RPC lines over its standard input
    /// and output) or echo:; repeatable
    #[arg(
        long,
        env = "LAPWING_SERVICE",
        value_name = "NAME[@VERSION][#RESOURCE,…]=URL",
        value_delimiter = '\n'
    )]
    pub(crate) service: Vec<ServiceSpec>,

    /// Service of these that only callers of this node itself may call; repeatable
    #[arg(long, env = "LAPWING_KEEP", value_name = "SERVICE", value_delimiter = ',')]
    pub(crate) keep: Vec<ServiceName>,

    /// Service of these whose callers have to know the token in a file; repeatable
    #[arg(
        long,
        env = "LAPWING_SERVICE_TOKEN",
        value_name = "SERVICE=FILE",
        value_delimiter = ','
    )]
    pub(crate) service_token: Vec<ServiceTokenSetting>,

    /// File with a secret of at least 16 characters: nodes with the same one take each other for neighbours, and others
    /// have to be named
    #[arg(long, env = "LAPWING_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Cluster with whose nodes to exchange calls, or `any`; repeatable [default: none but this node's own]
    #[arg(
        long,
        env = "LAPWING_BRIDGE",
        value_name = "CLUSTER|any",
        value_delimiter = ','
    )]
    pub(crate) bridge: Vec<BridgeSetting>,

    /// Of a main: service that other clusters may call, or `!SERVICE` for one that they may not; repeatable [default: all]
    #[arg(
        long,
        env = "LAPWING_LET_OUT",
        value_name = "[!]SERVICE",
        value_delimiter = ','
    )]
    pub(crate) let_out: Vec<RuleSetting>,

    /// Of a main: service of other clusters that is called from here, or `!SERVICE` for one that is not; repeatable [default: all]
    #[arg(
        long,
        env = "LAPWING_LET_IN",
        value_name = "[!]SERVICE",
        value_delimiter = ','
    )]
    pub(crate) let_in: Vec<RuleSetting>,

    /// Of a main: calls a minute that a neighbour of another cluster may make [default: any number where --bridge names the cluster,
    /// else 100]
    #[arg(long, env = "LAPWING_FOREIGN_CALLS", value_name = "N")]
    pub(crate) foreign_calls: Option<u32>,

    /// How to spread calls over the instances of a service, or of all that are not named: round-robin,
    /// least-connections, random or p2c-ewma (the quicker of any two); repeatable [default: round-robin]
    #[arg(
        long,
        env = "LAPWING_BALANCE",
        value_name = "[SERVICE=]ALGORITHM",
        value_delimiter = ','
    )]
    pub(crate) balance: Vec<BalanceSetting>,
}

/// What `--service-token` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ServiceTokenSetting {
    service: ServiceName,
    file: PathBuf,
}

/// What `--bridge` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BridgeSetting {
    Any,
    Cluster(ClusterId),
}

/// What `--let-out` and `--let-in` say of one service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RuleSetting {
    service: ServiceName,
    is_denied: bool,
}

/// What `--balance` says of one service, or of all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct BalanceSetting {
    service: Option<ServiceName>,
    algorithm: Algorithm,
}

/// Settings of the federation that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FederationSettingsError {
    /// The token's file.
    #[error("cannot read the token file {}", file.display())]
    TokenFile {
        /// Which.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A service is to be kept or shielded that there is not.
    #[error("--{flag} names the service `{service}`, which no --service offers")]
    Unoffered {
        /// The flag, without dashes.
        flag: &'static str,
        /// What it names.
        service: ServiceName,
    },
    /// Calls are to be spread in two ways at once.
    #[error("--balance names {} twice; give one algorithm for it", .service.as_ref().map_or_else(|| "an algorithm for all services".to_owned(), |service| format!("the service `{service}`")))]
    BalancedTwice {
        /// Of which service; `None` for all that are not named.
        service: Option<ServiceName>,
    },
    /// What is in it. It is not shown.
    #[error("the token file {} cannot be used", file.display())]
    Token {
        /// Which.
        file: PathBuf,
        /// Why.
        source: TokenError,
    },
}

impl FromStr for ServiceTokenSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, file) = text
            .split_once('=')
            .filter(|(_, file)| !file.is_empty())
            .ok_or_else(|| format!("`{text}` names no file; write SERVICE=FILE"))?;
        let service = service
            .parse()
            .map_err(|error: ParseNameError| error.to_string())?;
        Ok(Self {
            service,
            file: file.into(),
        })
    }
}

impl FromStr for BridgeSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self::Any);
        }
        let cluster = text.parse().map_err(|error| format!("{error}; or write `any`"))?;
        Ok(Self::Cluster(cluster))
    }
}

impl FromStr for RuleSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (is_denied, name) = text.strip_prefix('!').map_or((false, text), |name| (true, name));
        let service = name.parse().map_err(|error: ParseNameError| error.to_string())?;
        Ok(Self { service, is_denied })
    }
}

impl FromStr for BalanceSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, algorithm) = match text.split_once('=') {
            Some((service, algorithm)) => {
                let parsed = service.parse();
                (
                    Some(parsed.map_err(|error: ParseNameError| error.to_string())?),
                    algorithm,
                )
            }
            None => (None, text),
        };
        let algorithm = algorithm
            .parse()
            .map_err(|error: ParseAlgorithmError| error.to_string())?;
        Ok(Self { service, algorithm })
    }
}

/// What is offered, with who may call it.
///
/// # Errors
/// When a flag names a service that is not among them, or a token cannot be used.
pub(crate) fn exposed(
    mut services: Vec<ServiceSpec>,
    keep: &[ServiceName],
    tokens: &[ServiceTokenSetting],
) -> Result<Vec<ServiceSpec>, FederationSettingsError> {
    fn named<'a>(
        services: &'a mut [ServiceSpec],
        service: &ServiceName,
        flag: &'static str,
    ) -> Result<&'a mut ServiceSpec, FederationSettingsError> {
        let found = services.iter_mut().find(|spec| spec.service.name == *service);
        found.ok_or_else(|| FederationSettingsError::Unoffered {
            flag,
            service: service.clone(),
        })
    }
    for service in keep {
        named(&mut services, service, "keep")?.exposure.is_private = true;
    }
    for ServiceTokenSetting { service, file } in tokens {
        let token = read_token(file.clone())?;
        named(&mut services, service, "service-token")?.exposure.token = Some(token);
    }
    Ok(services)
}

impl FederationFlags {
    /// Whether anything is set that is asked where a call crosses from one cluster to another, which is between mains.
    pub(crate) fn says_what_crosses_clusters(&self) -> bool {
        !self.let_out.is_empty() || !self.let_in.is_empty() || self.foreign_calls.is_some()
    }

    /// What the flags say of whom a node has to do with.
    ///
    /// # Errors
    /// When the token cannot be read, or is too easily guessed.
    pub(crate) fn policy(&self) -> Result<Policy, FederationSettingsError> {
        Ok(Policy {
            boundary: boundary(&self.bridge),
            homes: None,
            token: self.token_file.clone().map(read_token).transpose()?,
            lets_out: rule(&self.let_out),
            lets_in: rule(&self.let_in),
            foreign_calls_per_minute: self.foreign_calls,
        })
    }

    /// What the flags say of how calls are spread.
    ///
    /// # Errors
    /// When they say it twice of the same service.
    pub(crate) fn balancing(&self) -> Result<Balancing, FederationSettingsError> {
        let mut named = BTreeMap::new();
        for BalanceSetting { service, algorithm } in &self.balance {
            if named.insert(service.clone(), *algorithm).is_some() {
                let service = service.clone();
                return Err(FederationSettingsError::BalancedTwice { service });
            }
        }
        let default = named.remove(&None).unwrap_or_default();
        let services = named
            .into_iter()
            .filter_map(|(service, algorithm)| Some((service?, algorithm)));
        Ok(Balancing {
            default,
            services: services.collect(),
        })
    }
}

fn boundary(bridges: &[BridgeSetting]) -> Boundary {
    let mut clusters = BTreeSet::new();
    for bridge in bridges {
        match bridge {
            BridgeSetting::Any => return Boundary::Open,
            BridgeSetting::Cluster(cluster) => drop(clusters.insert(*cluster)),
        }
    }
    if clusters.is_empty() {
        Boundary::Strict
    } else {
        Boundary::Bridged(clusters)
    }
}

/// Where something is allowed, only that is.
fn rule(settings: &[RuleSetting]) -> ServiceRule {
    let mut rule = ServiceRule::default();
    for RuleSetting { service, is_denied } in settings.iter().cloned() {
        if is_denied {
            rule.denied.insert(service);
        } else {
            rule.allowed.get_or_insert_default().insert(service);
        }
    }
    rule
}

/// A token has a line; a file that is longer was given by mistake.
const TOKEN_FILE_MAX: u64 = 4096;

/// Reads a secret from a file.
///
/// # Errors
/// When it cannot be read, or is too easily guessed.
fn read_token(file: PathBuf) -> Result<Token, FederationSettingsError> {
    let text = read_text(&file)?;
    Token::new(&text).map_err(|source| FederationSettingsError::Token { file, source })
}

/// Reads a secret from a file, as it is shown to a node of this machine.
///
/// # Errors
/// As [`read_token`].
pub(crate) fn read_token_text(file: PathBuf) -> Result<String, FederationSettingsError> {
    let text = read_text(&file)?;
    match Token::new(&text) {
        Ok(_) => Ok(text.trim().to_owned()),
        Err(source) => Err(FederationSettingsError::Token { file, source }),
    }
}

fn read_text(file: &Path) -> Result<String, FederationSettingsError> {
    let mut text = String::new();
    let read = File::open(file).and_then(|open| open.take(TOKEN_FILE_MAX).read_to_string(&mut text));
    read.map(|_| text)
        .map_err(|source| FederationSettingsError::TokenFile {
            file: file.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_something_is_allowed_only_that_is_and_what_is_denied_is_not() {
        let settings = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let [blog, shop] = ["blog", "shop"].map(|name| name.parse().unwrap());
        assert!(rule(&settings(&[])).allows(&blog));
        let denied = rule(&settings(&["!blog"]));
        assert!(!denied.allows(&blog) && denied.allows(&shop));
        let allowed = rule(&settings(&["blog"]));
        assert!(allowed.allows(&blog) && !allowed.allows(&shop));
        assert!("bl og".parse::<RuleSetting>().is_err());
    }

    #[test]
    fn a_service_is_kept_or_shielded_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "correct horse battery staple").unwrap();
        let services = || vec!["blog=echo:".parse().unwrap(), "shop=echo:".parse().unwrap()];
        let token: ServiceTokenSetting = format!("shop={}", file.display()).parse().unwrap();
        let exposed_services = exposed(services(), &["blog".parse().unwrap()], &[token]).unwrap();
        assert!(exposed_services[0].exposure.is_private && exposed_services[0].exposure.token.is_none());
        assert!(!exposed_services[1].exposure.is_private && exposed_services[1].exposure.token.is_some());
        let error = exposed(services(), &["wiki".parse().unwrap()], &[]).unwrap_err();
        assert!(error.to_string().contains("--keep") && error.to_string().contains("wiki"));
        assert!(
            "shop"
                .parse::<ServiceTokenSetting>()
                .unwrap_err()
                .contains("SERVICE=FILE")
        );
    }

    #[test]
    fn calls_are_spread_as_is_said_of_each_service_once() {
        let balancing = |texts: &[&str]| {
            let balance = texts.iter().map(|text| text.parse().unwrap()).collect();
            let flags = FederationFlags {
                balance,
                ..FederationFlags::default()
            };
            flags.balancing()
        };
        let [blog, shop] = ["blog", "shop"].map(|name| name.parse().unwrap());
        assert_eq!(balancing(&[]).unwrap(), Balancing::default());
        let said = balancing(&["shop=least-connections", "p2c-ewma"]).unwrap();
        assert_eq!(
            (said.of(&shop), said.of(&blog)),
            (Algorithm::LeastConnections, Algorithm::P2cEwma)
        );
        for twice in [["shop=random", "shop=round-robin"], ["random", "round-robin"]] {
            let error = balancing(&twice).unwrap_err().to_string();
            assert!(error.contains("--balance") && error.contains("twice"), "{error}");
        }
        let error = "shop=fastest".parse::<BalanceSetting>().unwrap_err();
        assert!(
            error.contains("`fastest`") && error.contains("least-connections"),
            "{error}"
        );
        assert!("sh op=random".parse::<BalanceSetting>().is_err());
    }

    #[test]
    fn bridges_are_clusters_or_any() {
        let cluster = "00112233445566778899aabbccddeeff";
        let parsed: BridgeSetting = cluster.parse().unwrap();
        assert_eq!(
            boundary(&[parsed]),
            Boundary::Bridged(BTreeSet::from([cluster.parse().unwrap()]))
        );
        assert_eq!(boundary(&[parsed, BridgeSetting::Any]), Boundary::Open);
        assert_eq!(boundary(&[]), Boundary::Strict);
        assert!("here".parse::<BridgeSetting>().unwrap_err().contains("any"));
    }

    #[test]
    fn a_short_token_is_refused_without_being_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "hunter2").unwrap();
        let flags = FederationFlags {
            token_file: Some(file.clone()),
            ..FederationFlags::default()
        };
        let error = lapwing_base::chain(&flags.policy().unwrap_err());
        assert!(error.contains("16") && !error.contains("hunter2"), "{error}");
        std::fs::write(&file, "correct horse battery staple\n").unwrap();
        assert!(flags.policy().unwrap().token.is_some());
    }
}
