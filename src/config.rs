//! The settings of a node, from four layers: flags, `LAPWING_*` environment variables, a TOML file, defaults.
//!
//! The first layer that says something about a setting wins. Flags and environment are read by the argument
//! parser, which knows both; this file reads the TOML file, puts the layers together and checks the result. It
//! starts nothing and touches no network.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::federation_settings::{FederationFlags, FederationSettingsError, exposed};
use clap::Args;
use clap::builder::BoolishValueParser;
use lapwing::{NodeConfig, RateRule, RateRuleError, RateRules};
use lapwing_base::{Member, Multiaddr, Role, nearest};
use lapwing_federation::{NodeName, ParseNameError};
use serde::Deserialize;

/// What can be set of a node. A flag wins over its environment variable, that over the file, that over the default.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct NodeFlags {
    /// TOML file with settings; keys are the flags' names with `_` for `-`
    #[arg(long, env = "LAPWING_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Gateway to ask for the cluster; repeatable, any one that answers is enough
    #[arg(long, env = "LAPWING_GATEWAY", value_name = "URL", value_delimiter = ',')]
    pub(crate) gateway: Vec<String>,

    /// Where the node keeps its identity, log, checkpoints and model [default: the user's data directory]
    #[arg(long, env = "LAPWING_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Address to listen on; repeatable [default: /ip4/0.0.0.0/udp/0/quic-v1]
    #[arg(long, env = "LAPWING_LISTEN", value_name = "MULTIADDR", value_delimiter = ',')]
    pub(crate) listen: Vec<Multiaddr>,

    /// Where the node answers `status`, `job`, `cluster` and `/metrics`; port 0 picks a free one [default: 127.0.0.1:0]
    #[arg(long, env = "LAPWING_ADMIN", value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,

    /// What people call the node, at most 64 bytes [default: the host's name]
    #[arg(long, env = "LAPWING_NAME")]
    pub(crate) name: Option<String>,

    /// Whether the node is publicly reachable and relays for others: auto finds out [default: auto]
    #[arg(long, env = "LAPWING_ROLE", value_name = "auto|main|home")]
    pub(crate) role: Option<RoleSetting>,

    /// Certificate chain (PEM) that a WebSocket listener shows [default: one made at the start]
    #[arg(long, env = "LAPWING_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Key (PEM) of --tls-cert
    #[arg(long, env = "LAPWING_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Data to train on: digits, idx:DIR, csv:FILE or text:FILE, with #partition=iid|dirichlet:ALPHA|labels:K,seed=S,part=I/N
    // Not LAPWING_DATA, which names the folder of data sets for tests.
    #[arg(long, env = "LAPWING_DATA_SPEC", value_name = "SPEC")]
    pub(crate) data: Option<String>,

    /// What computes the training: plain, burn, or tch where it was built in [default: plain]
    #[arg(long, env = "LAPWING_BACKEND", value_name = "NAME")]
    pub(crate) backend: Option<String>,

    /// Command of a program of your own that trains jobs with model = "external"; see docs/trainer-protocol.md
    #[arg(long, env = "LAPWING_TRAINER", value_name = "COMMAND")]
    pub(crate) trainer: Option<String>,

    /// Found a cluster without asking a gateway
    #[arg(
        long,
        env = "LAPWING_BOOTSTRAP",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "BOOL",
        value_parser = BoolishValueParser::new()
    )]
    pub(crate) bootstrap: Option<bool>,

    #[command(flatten)]
    pub(crate) federation: FederationFlags,

    /// Most to send, such as 10mbit; for one class model=10mbit, for one peer PEER=5mbit with its id or name;
    /// repeatable, and all that apply hold [default: no limit]
    #[arg(
        long,
        env = "LAPWING_MAX_UPLOAD",
        value_name = "[CLASS=|PEER=]RATE",
        value_delimiter = ','
    )]
    pub(crate) max_upload: Vec<RateRule>,

    /// Most to receive, in the same way [default: no limit]
    #[arg(
        long,
        env = "LAPWING_MAX_DOWNLOAD",
        value_name = "[CLASS=|PEER=]RATE",
        value_delimiter = ','
    )]
    pub(crate) max_download: Vec<RateRule>,
}

/// The settings of one node, complete and checked as far as that is possible without trying them.
#[derive(Clone, Debug)]
pub(crate) struct NodeSettings {
    /// For the node.
    pub(crate) node: NodeConfig,
    /// For the log, when the file names a level.
    pub(crate) log_level: Option<String>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The settings file could not be read.
    #[error("cannot read the settings file {}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The settings file is larger than any settings are.
    #[error("the settings file {} has more than {SETTINGS_SIZE_MAX} bytes", file.display())]
    TooLarge {
        /// Which.
        file: PathBuf,
    },
    /// The settings file is not TOML, or a value has the wrong type.
    #[error("{}, line {line}: {problem}", file.display())]
    Syntax {
        /// Which.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser said.
        problem: String,
    },
    /// The settings file has a key that is no setting.
    #[error("{} has an unknown key `{key}`{}", file.display(), suggestion(*nearest))]
    UnknownKey {
        /// Which file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The known key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A value in the settings file cannot be used.
    #[error("{}, key `{key}`: {problem}", file.display())]
    Value {
        /// Which file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A name is empty, or longer than a member's may be.
    #[error("a name has 1 to {} bytes, not {length}", Member::NAME_MAX)]
    Name {
        /// Its length in bytes.
        length: usize,
    },
    /// A name by which the node's services would not be reached.
    #[error("--name: {source}")]
    OtherRole {
        /// Why.
        source: ParseNameError,
    },
    /// Rates that cannot all be kept.
    #[error("--{flag}: {source}")]
    Rates {
        /// The flag, without dashes.
        flag: String,
        /// Why.
        source: RateRuleError,
    },
    /// Those of the federation.
    #[error(transparent)]
    Federation(#[from] FederationSettingsError),
    /// Nothing says where the data directory is.
    #[error("no --data-dir is given, and the user has no home directory to put one in")]
    NoDataDir,
}

fn suggestion(nearest: Option<&str>) -> String {
    match nearest {
        Some(key) => format!("; did you mean `{key}`?"),
        None => format!("; the keys are {}", KEYS.join(", ")),
    }
}

/// The largest settings file; ours have a dozen lines.
const SETTINGS_SIZE_MAX: u64 = 64 * 1024;

/// The keys of the settings file, as [`FileSettings`] reads them.
const KEYS: [&str; 24] = [
    "gateway",
    "data_dir",
    "listen",
    "admin",
    "name",
    "role",
    "tls_cert",
    "tls_key",
    "data",
    "backend",
    "trainer",
    "bootstrap",
    "service",
    "keep",
    "service_token",
    "token_file",
    "bridge",
    "let_out",
    "let_in",
    "foreign_calls",
    "balance",
    "max_upload",
    "max_download",
    "log_level",
];

/// The settings file as it stands, every key optional.
#[derive(Debug, Default, Deserialize)]
struct FileSettings {
    gateway: Option<OneOrMany>,
    data_dir: Option<PathBuf>,
    listen: Option<OneOrMany>,
    admin: Option<String>,
    name: Option<String>,
    role: Option<String>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    data: Option<String>,
    backend: Option<String>,
    trainer: Option<String>,
    bootstrap: Option<bool>,
    #[serde(flatten)]
    federation: FederationTexts,
    max_upload: Option<OneOrMany>,
    max_download: Option<OneOrMany>,
    log_level: Option<String>,
}

/// The settings of the federation in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FederationTexts {
    service: Option<OneOrMany>,
    keep: Option<OneOrMany>,
    service_token: Option<OneOrMany>,
    token_file: Option<PathBuf>,
    bridge: Option<OneOrMany>,
    let_out: Option<OneOrMany>,
    let_in: Option<OneOrMany>,
    foreign_calls: Option<u32>,
    balance: Option<OneOrMany>,
}

/// `gateway = "http://a"` and `gateway = ["http://a", "http://b"]` are both what a person would write.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

impl NodeFlags {
    /// Puts the layers together.
    ///
    /// # Errors
    ///
    /// When the file cannot be used, or a value of any layer cannot.
    pub(crate) fn settings(self, defaults: Defaults) -> Result<NodeSettings, SettingsError> {
        let (file, path) = match &self.config {
            Some(path) => (FileSettings::read(path)?, path.clone()),
            None => (FileSettings::default(), PathBuf::new()),
        };
        let listen = if self.listen.is_empty() {
            let texts = file.listen.map_or_else(listen_defaults, OneOrMany::into_vec);
            parse_all(&texts, "listen", &path)?
        } else {
            self.listen
        };
        let admin = match self.admin {
            Some(admin) => admin,
            None => parse(file.admin.as_deref(), "admin", &path)?.unwrap_or(defaults.admin),
        };
        let max_upload = rate_rules(self.max_upload, file.max_upload, "max_upload", &path)?;
        let max_download = rate_rules(self.max_download, file.max_download, "max_download", &path)?;
        let gateways = if self.gateway.is_empty() {
            file.gateway.map_or_else(Vec::new, OneOrMany::into_vec)
        } else {
            self.gateway
        };
        let role = match self.role {
            Some(role) => role,
            None => parse(file.role.as_deref(), "role", &path)?.unwrap_or_default(),
        };
        let federation = federation(self.federation, file.federation, &path)?;
        let given = self.name.or(file.name);
        // The name of a host says nothing of the node, and many are called `nas.home`.
        if let Some(Ok(name)) = given.as_deref().map(str::parse::<NodeName>)
            && let Err(source @ ParseNameError::OtherRole { .. }) = name.own(role.0)
        {
            return Err(SettingsError::OtherRole { source });
        }
        let name = given.unwrap_or(defaults.name);
        if name.is_empty() || name.len() > Member::NAME_MAX {
            return Err(SettingsError::Name { length: name.len() });
        }
        let node = NodeConfig {
            gateways,
            data_dir: self
                .data_dir
                .or(file.data_dir)
                .or(defaults.data_dir)
                .ok_or(SettingsError::NoDataDir)?,
            listen,
            admin,
            name,
            role: role.0,
            tls: self.tls_cert.or(file.tls_cert).zip(self.tls_key.or(file.tls_key)),
            data: self.data.or(file.data),
            backend: self
                .backend
                .or(file.backend)
                .unwrap_or_else(|| lapwing_train::BACKENDS[0].to_owned()),
            trainer: self.trainer.or(file.trainer),
            bootstrap: self.bootstrap.or(file.bootstrap).unwrap_or(false),
            services: exposed(
                federation.service.clone(),
                &federation.keep,
                &federation.service_token,
            )?,
            policy: federation.policy()?,
            balancing: federation.balancing()?,
            max_upload,
            max_download,
        };
        Ok(NodeSettings {
            node,
            log_level: file.log_level,
        })
    }
}

/// The settings of the federation: of the flags, or of the file where no flag says anything.
fn federation(
    flags: FederationFlags,
    file: FederationTexts,
    path: &Path,
) -> Result<FederationFlags, SettingsError> {
    fn either<T: FromStr>(
        flags: Vec<T>,
        texts: Option<OneOrMany>,
        key: &'static str,
        path: &Path,
    ) -> Result<Vec<T>, SettingsError>
    where
        T::Err: std::fmt::Display,
    {
        if flags.is_empty() {
            let texts = texts.map_or_else(Vec::new, OneOrMany::into_vec);
            parse_all(&texts, key, path)
        } else {
            Ok(flags)
        }
    }
    Ok(FederationFlags {
        service: either(flags.service, file.service, "service", path)?,
        keep: either(flags.keep, file.keep, "keep", path)?,
        service_token: either(flags.service_token, file.service_token, "service_token", path)?,
        token_file: flags.token_file.or(file.token_file),
        bridge: either(flags.bridge, file.bridge, "bridge", path)?,
        let_out: either(flags.let_out, file.let_out, "let_out", path)?,
        let_in: either(flags.let_in, file.let_in, "let_in", path)?,
        foreign_calls: flags.foreign_calls.or(file.foreign_calls),
        balance: either(flags.balance, file.balance, "balance", path)?,
    })
}

/// The rules of one direction: of the flags, or of the file where no flag says anything.
fn rate_rules(
    flags: Vec<RateRule>,
    file: Option<OneOrMany>,
    key: &'static str,
    path: &Path,
) -> Result<RateRules, SettingsError> {
    if flags.is_empty() {
        let texts = file.map_or_else(Vec::new, OneOrMany::into_vec);
        let rules = RateRules::new(parse_all(&texts, key, path)?);
        return rules.map_err(|error| SettingsError::Value {
            file: path.to_owned(),
            key,
            problem: error.to_string(),
        });
    }
    RateRules::new(flags).map_err(|source| SettingsError::Rates {
        flag: key.replace('_', "-"),
        source,
    })
}

/// What `--role` says; nothing stands for finding out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct RoleSetting(Option<Role>);

impl FromStr for RoleSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            "main" => Ok(Self(Some(Role::Main))),
            "home" => Ok(Self(Some(Role::Home))),
            other => Err(format!("`{other}` is no role; use auto, main or home")),
        }
    }
}

/// Every interface, with both versions of IP where the machine has both.
pub(crate) fn listen_defaults() -> Vec<String> {
    let mut listen = vec![LISTEN_DEFAULT.to_owned()];
    if std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
        listen.push(LISTEN_DEFAULT_V6.to_owned());
    }
    listen
}

/// The lowest layer, as far as it depends on the machine.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    /// The host's name.
    pub(crate) name: String,
    /// Below the user's home, if there is one.
    pub(crate) data_dir: Option<PathBuf>,
    /// Loopback only: who may speak to it may steer the node.
    pub(crate) admin: SocketAddr,
}

impl Defaults {
    /// What this machine and this user suggest.
    pub(crate) fn of_this_machine() -> Self {
        let uname = rustix::system::uname();
        let mut name = String::new();
        for character in uname.nodename().to_string_lossy().chars() {
            if name.len() + character.len_utf8() > Member::NAME_MAX {
                break;
            }
            name.push(character);
        }
        if name.is_empty() {
            name.push_str("node");
        }
        Self {
            name,
            data_dir: user_data_dir("node"),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

/// Where this user's programs keep data, by the XDG base directory specification 0.8; `None` without a home.
pub(crate) fn user_data_dir(what: &str) -> Option<PathBuf> {
    let base = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(base.join("lapwing").join(what))
}

/// An environment variable that names an absolute path; the specification tells to ignore relative ones.
pub(crate) fn absolute(variable: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(variable)?);
    path.is_absolute().then_some(path)
}

/// Every interface, a free UDP port: several nodes fit on one machine, and peers learn the port anyway.
const LISTEN_DEFAULT: &str = "/ip4/0.0.0.0/udp/0/quic-v1";
const LISTEN_DEFAULT_V6: &str = "/ip6/::/udp/0/quic-v1";

impl FileSettings {
    fn read(path: &Path) -> Result<Self, SettingsError> {
        let unreadable = |source| SettingsError::Unreadable {
            file: path.to_owned(),
            source,
        };
        let size = fs::metadata(path).map_err(unreadable)?.len();
        if size > SETTINGS_SIZE_MAX {
            return Err(SettingsError::TooLarge {
                file: path.to_owned(),
            });
        }
        Self::parse(&fs::read_to_string(path).map_err(unreadable)?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let syntax = |error: toml::de::Error| SettingsError::Syntax {
            file: path.to_owned(),
            line: line_of(text, error.span()),
            problem: error.message().trim().replace('\n', ", "),
        };
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(SettingsError::UnknownKey {
                file: path.to_owned(),
                key: key.chars().take(64).collect(),
                nearest: nearest(key, KEYS),
            });
        }
        toml::from_str(text).map_err(syntax)
    }
}

/// The line, counted from 1, in which a span begins.
fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start).min(text.len());
    text.as_bytes()[..start]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
        + 1
}

fn parse<T>(text: Option<&str>, key: &'static str, file: &Path) -> Result<Option<T>, SettingsError>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.map(|text| {
        text.parse().map_err(|problem: T::Err| SettingsError::Value {
            file: file.to_owned(),
            key,
            problem: format!("`{}`: {problem}", text.chars().take(64).collect::<String>()),
        })
    })
    .transpose()
}

fn parse_all<T>(texts: &[String], key: &'static str, file: &Path) -> Result<Vec<T>, SettingsError>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    texts
        .iter()
        .filter_map(|text| parse(Some(text), key, file).transpose())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let settings = settings(
            NodeFlags {
                name: Some("from-flag".to_owned()),
                ..NodeFlags::default()
            },
            "name = \"from-file\"\nadmin = \"127.0.0.1:9000\"\ngateway = \"http://a\"",
        )
        .unwrap();
        assert_eq!(settings.node.name, "from-flag");
        assert_eq!(settings.node.admin.port(), 9000);
        assert_eq!(settings.node.gateways, ["http://a"]);
        assert_eq!(settings.node.backend, "plain");
        assert_eq!(
            settings.node.listen[0],
            "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap()
        );
    }

    #[test]
    fn a_flag_can_switch_off_what_the_file_switches_on() {
        let off = NodeFlags {
            bootstrap: Some(false),
            ..NodeFlags::default()
        };
        assert!(!settings(off, "bootstrap = true").unwrap().node.bootstrap);
        let silent = NodeFlags::default();
        assert!(settings(silent, "bootstrap = true").unwrap().node.bootstrap);
    }

    #[test]
    fn rates_are_one_or_many_and_those_of_a_flag_replace_those_of_the_file() {
        let rules = |texts: &[&str]| RateRules::new(texts.iter().map(|text| text.parse().unwrap())).unwrap();
        let file = "max_upload = [\"10mbit\", \"model=5mbit\"]\nmax_download = \"alice=1mbit\"";
        let node = settings(NodeFlags::default(), file).unwrap().node;
        assert_eq!(node.max_upload, rules(&["10mbit", "model=5mbit"]));
        assert_eq!(node.max_download, rules(&["alice=1mbit"]));
        let flag = |text: &str| NodeFlags {
            max_upload: text.split(',').map(|rule| rule.parse().unwrap()).collect(),
            ..NodeFlags::default()
        };
        let node = settings(flag("model=1mbit"), file).unwrap().node;
        assert_eq!(node.max_upload, rules(&["model=1mbit"]));
        let error = settings(flag("1mbit,2mbit"), file).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--max-upload: the node is held to two rates; give one"
        );
        let error = settings(NodeFlags::default(), "max_upload = \"vote=1\"").unwrap_err();
        assert!(
            error.to_string().contains("key `max_upload`: `vote=1`"),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_and_the_nearest_known_one_named() {
        let error = settings(NodeFlags::default(), "max_uplaod = \"10mbit\"").unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("has an unknown key `max_uplaod`; did you mean `max_upload`?"),
            "{error}"
        );
        let error = settings(NodeFlags::default(), "colour = 1").unwrap_err();
        assert!(
            error.to_string().contains("the keys are gateway, data_dir"),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place() {
        let error = settings(NodeFlags::default(), "\nname = 3").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        let error = settings(NodeFlags::default(), "listen = \"here\"").unwrap_err();
        assert!(error.to_string().contains("key `listen`: `here`"), "{error}");
        let error = settings(NodeFlags::default(), "name = \"\"").unwrap_err();
        assert!(matches!(error, SettingsError::Name { length: 0 }));
    }

    #[test]
    fn a_name_that_says_another_kind_of_node_is_refused() {
        for (text, wrong) in [
            ("name = \"alice.main\"\nrole = \"home\"", true),
            ("name = \"alice.home\"\nrole = \"home\"", false),
            ("name = \"alice.main\"", false),
            ("name = \"Alice's laptop.main\"\nrole = \"home\"", false),
        ] {
            match settings(NodeFlags::default(), text) {
                Err(error) => assert!(
                    wrong && error.to_string().contains("leave `.main` out"),
                    "{text}: {error}"
                ),
                Ok(_) => assert!(!wrong, "{text}"),
            }
        }
        let host = Defaults {
            name: "nas.home".to_owned(),
            ..defaults()
        };
        let main = NodeFlags {
            role: Some(RoleSetting(Some(Role::Main))),
            ..NodeFlags::default()
        };
        assert_eq!(main.settings(host).unwrap().node.name, "nas.home");
    }

    #[test]
    fn a_node_without_a_place_for_its_data_is_refused() {
        let nowhere = Defaults {
            data_dir: None,
            ..defaults()
        };
        let error = NodeFlags::default().settings(nowhere).unwrap_err();
        assert!(matches!(error, SettingsError::NoDataDir));
    }

    fn settings(flags: NodeFlags, file: &str) -> Result<NodeSettings, SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        fs::write(&path, file).unwrap();
        NodeFlags {
            config: Some(path),
            ..flags
        }
        .settings(defaults())
    }

    fn defaults() -> Defaults {
        Defaults {
            name: "host".to_owned(),
            data_dir: Some(PathBuf::from("/data")),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}
