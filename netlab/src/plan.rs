//! A lab as a file: what is in it, and how it is laid out. It measures and runs nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use lapwing_netlab::{
    Egress, Filtering, Host, Ipv6, Lab, LabError, Lan, Mapping, Nat, Ports, Queue, Rate, Router, Sequence,
    Shape,
};
use serde::{Deserialize, Deserializer, de};

/// What a file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    seed: Option<u64>,
    #[serde(default, rename = "router")]
    routers: Vec<RouterPlan>,
    #[serde(default, rename = "host")]
    hosts: Vec<HostPlan>,
    #[serde(default, rename = "path")]
    paths: Vec<PathPlan>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouterPlan {
    name: String,
    behind: Option<String>,
    link: Option<LinkPlan>,
    mapping: Option<MappingPlan>,
    filtering: Option<FilteringPlan>,
    #[serde(default)]
    hairpin: bool,
    egress: Option<EgressPlan>,
    ipv6: Option<Ipv6Plan>,
    /// `carrier`, or an address of the /24.
    lan: Option<String>,
    ports: Option<(u16, u16)>,
    #[serde(default, deserialize_with = "duration")]
    lifetime: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostPlan {
    name: String,
    behind: Option<String>,
    link: Option<LinkPlan>,
    /// What a shell of the host runs in the background.
    run: Option<String>,
}

/// One way between two hosts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PathPlan {
    from: String,
    to: String,
    shape: ShapePlan,
}

/// Both directions alike, or with `up` and `down` apart.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkPlan {
    up: Option<ShapePlan>,
    down: Option<ShapePlan>,
    both: Option<ShapePlan>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapePlan {
    rate: Option<String>,
    #[serde(default, deserialize_with = "duration")]
    delay: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    jitter: Option<Duration>,
    #[serde(default)]
    reorder: bool,
    #[serde(default)]
    loss: f64,
    #[serde(default, deserialize_with = "duration")]
    queue: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MappingPlan {
    None,
    Kept,
    Translated,
    Hashed,
    Random,
    Sequential,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FilteringPlan {
    Everybody,
    Address,
    AddressAndPort,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EgressPlan {
    Any,
    NoUdp,
    Web,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ipv6Plan {
    Off,
    Firewalled,
    Open,
}

/// Why a plan could not be laid out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("{name:?} is behind {behind:?}, which is no router further up in the file")]
    Behind { name: String, behind: String },
    #[error("a path from {from:?} to {to:?}: one of the two is no host of the file")]
    Path { from: String, to: String },
    #[error("{name}: {wrong}")]
    Wrong { name: String, wrong: String },
    #[error("failed to lay out {name}")]
    Lab {
        name: String,
        #[source]
        source: LabError,
    },
}

/// A lab as a file asked for it.
#[derive(Debug)]
pub(crate) struct LaidOut {
    pub(crate) lab: Lab,
    pub(crate) routers: Vec<Router>,
    /// With what runs on each in the background.
    pub(crate) hosts: Vec<(Host, Option<String>)>,
}

impl Plan {
    /// Lays it out: routers in the order of the file, then hosts, then the shapes of their links and of the paths
    /// between hosts.
    pub(crate) fn lay_out(self) -> Result<LaidOut, PlanError> {
        let failed = |name: &str| {
            let name = name.to_owned();
            move |source| PlanError::Lab { name, source }
        };
        let lab = Lab::builder()
            .seed(self.seed.unwrap_or(1))
            .start()
            .map_err(failed("the lab"))?;
        let mut routers: BTreeMap<String, Router> = BTreeMap::new();
        let mut in_order = Vec::new();
        for plan in &self.routers {
            let nat = plan.nat().map_err(|wrong| PlanError::Wrong {
                name: plan.name.clone(),
                wrong,
            })?;
            let router = match above(&routers, &plan.name, plan.behind.as_deref())? {
                None => lab.router(&plan.name, nat),
                Some(above) => above.router(&plan.name, nat),
            };
            let router = router.map_err(failed(&plan.name))?;
            in_order.push(router.clone());
            routers.insert(plan.name.clone(), router);
        }
        let mut hosts = Vec::new();
        for plan in &self.hosts {
            let host = match above(&routers, &plan.name, plan.behind.as_deref())? {
                None => lab.public_host(&plan.name),
                Some(above) => above.host(&plan.name),
            };
            hosts.push((host.map_err(failed(&plan.name))?, plan.run.clone()));
        }
        let routers_links = in_order
            .iter()
            .zip(&self.routers)
            .map(|(router, plan)| (router.link(), &plan.link));
        let hosts_links = hosts
            .iter()
            .zip(&self.hosts)
            .map(|((host, _), plan)| (host.link(), &plan.link));
        let names = self
            .routers
            .iter()
            .map(|plan| &plan.name)
            .chain(self.hosts.iter().map(|plan| &plan.name));
        for ((link, plan), name) in routers_links.chain(hosts_links).zip(names) {
            let Some(plan) = plan else { continue };
            let (up, down) = plan.shapes().map_err(|wrong| PlanError::Wrong {
                name: name.clone(),
                wrong,
            })?;
            link.shape_each(up, down).map_err(failed(name))?;
        }
        let named = |name: &str| {
            hosts
                .iter()
                .map(|(host, _)| host)
                .find(|host| host.name() == name)
        };
        for PathPlan { from, to, shape } in &self.paths {
            let (Some(sender), Some(receiver)) = (named(from), named(to)) else {
                let (from, to) = (from.clone(), to.clone());
                return Err(PlanError::Path { from, to });
            };
            let shape = shape.shape().map_err(|wrong| PlanError::Wrong {
                name: format!("the path from {from} to {to}"),
                wrong,
            })?;
            sender.shape_path(receiver, shape).map_err(failed(from))?;
        }
        Ok(LaidOut {
            lab,
            routers: in_order,
            hosts,
        })
    }
}

fn above<'a>(
    routers: &'a BTreeMap<String, Router>,
    name: &str,
    behind: Option<&str>,
) -> Result<Option<&'a Router>, PlanError> {
    let Some(behind) = behind else {
        return Ok(None);
    };
    let missing = || PlanError::Behind {
        name: name.into(),
        behind: behind.into(),
    };
    routers.get(behind).ok_or_else(missing).map(Some)
}

impl RouterPlan {
    fn nat(&self) -> Result<Nat, String> {
        let usual = Nat::default();
        let mapping = self.mapping.map_or(usual.mapping, |mapping| match mapping {
            MappingPlan::None => Mapping::None,
            MappingPlan::Kept => Mapping::EndpointIndependent(Ports::Preserved),
            MappingPlan::Translated => Mapping::EndpointIndependent(Ports::Translated),
            MappingPlan::Hashed => Mapping::Symmetric(Sequence::Hashed),
            MappingPlan::Random => Mapping::Symmetric(Sequence::Random),
            MappingPlan::Sequential => Mapping::Symmetric(Sequence::Sequential),
        });
        let filtering = self
            .filtering
            .map_or(usual.filtering, |filtering| match filtering {
                FilteringPlan::Everybody => Filtering::EndpointIndependent,
                FilteringPlan::Address => Filtering::Address,
                FilteringPlan::AddressAndPort => Filtering::AddressAndPort,
            });
        let egress = self.egress.map_or(usual.egress, |egress| match egress {
            EgressPlan::Any => Egress::Any,
            EgressPlan::NoUdp => Egress::NoUdp,
            EgressPlan::Web => Egress::Web,
        });
        let ipv6 = self.ipv6.map_or(usual.ipv6, |ipv6| match ipv6 {
            Ipv6Plan::Off => Ipv6::Off,
            Ipv6Plan::Firewalled => Ipv6::Firewalled,
            Ipv6Plan::Open => Ipv6::Open,
        });
        let lan = match self.lan.as_deref() {
            None => Lan::Own,
            Some("carrier") => Lan::Carrier,
            Some(address) => Lan::Prefix(
                address
                    .parse()
                    .map_err(|_| format!("lan is `carrier` or an IPv4 address, not {address:?}"))?,
            ),
        };
        Ok(Nat {
            mapping,
            filtering,
            hairpin: self.hairpin,
            egress,
            ipv6,
            lan,
            ports: self.ports.map_or(usual.ports, |(first, last)| first..=last),
            lifetime: self.lifetime.unwrap_or(usual.lifetime),
            ..usual
        })
    }
}

impl LinkPlan {
    fn shapes(&self) -> Result<(Shape, Shape), String> {
        let both = self.both.clone().unwrap_or_default();
        let shape = |apart: &Option<ShapePlan>| apart.as_ref().unwrap_or(&both).shape();
        Ok((shape(&self.up)?, shape(&self.down)?))
    }
}

impl ShapePlan {
    fn shape(&self) -> Result<Shape, String> {
        let usual = Shape::default();
        let rate = self
            .rate
            .as_deref()
            .map(str::parse::<Rate>)
            .transpose()
            .map_err(|wrong| wrong.to_string())?;
        Ok(Shape {
            rate,
            delay: self.delay.unwrap_or_default(),
            jitter: self.jitter.unwrap_or_default(),
            reorder: self.reorder,
            loss: self.loss,
            queue: self.queue.map_or(usual.queue, Queue::Time),
        })
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || de::Error::custom(format!("{text:?} is not a time: write 25ms, 1.5s or 200us"));
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).ok_or_else(wrong)?);
    let unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(wrong()),
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| wrong())? * unit;
    // An hour is longer than any link and any mapping.
    if !(0.0..=3_600.0).contains(&seconds) {
        return Err(wrong());
    }
    Ok(Some(Duration::from_secs_f64(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_readme_is_a_plan() {
        let readme = include_str!("../README.md");
        let file = readme
            .split("```toml\n")
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap();
        let plan: Plan = toml::from_str(file).unwrap();
        assert!(plan.routers.iter().all(|router| router.nat().is_ok()));
        let links = plan.hosts.iter().filter_map(|host| host.link.as_ref());
        assert!(links.clone().count() > 0 && links.clone().all(|link| link.shapes().is_ok()));
        assert!(!plan.paths.is_empty() && plan.paths.iter().all(|path| path.shape.shape().is_ok()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for file in [
            "[[host]]\nname = 'a'\nlink.both.delay = '25'",
            "[[host]]\nname = 'a'\nlink.both.delay = '-1s'",
            "[[host]]\nname = 'a'\nlink.both.delay = 'NaNs'",
            "[[host]]\nname = 'a'\nlink.both.speed = '1mbit'",
            "[[router]]\nname = 'a'\nmapping = 'cone'",
            "[[path]]\nfrom = 'a'\nshape.rate = '1mbit'",
            "[[router]]\nname = 'a'\nlifetime = '1h'",
        ] {
            assert!(toml::from_str::<Plan>(file).is_err(), "{file}");
        }
        let plan: Plan = toml::from_str("[[host]]\nname = 'a'\nlink.both.rate = 'fast'").unwrap();
        assert!(plan.hosts[0].link.as_ref().unwrap().shapes().is_err());
    }
}
