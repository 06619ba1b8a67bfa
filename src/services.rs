//! What `--service` says: a name, perhaps a version and resources, and where the service is.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use lapwing_federation::{
    Backend, ChildBackend, ChildBackendError, Echo, Exposure, Federation, HttpBackend, HttpBackendError,
    OfferError, ParseNameError, ParseVersionError, Service, ServiceError,
};
use tracing::debug;

/// A service to offer: `NAME[@VERSION][#RESOURCE,…]=URL`. The URL is of HTTP, `exec:COMMAND` for a program that is spoken
/// to over its standard input and output, or `echo:`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceSpec {
    /// What is announced.
    pub service: Service,
    /// Where it is.
    pub at: ServiceAt,
    /// Who may call it: everybody, unless something else is said.
    pub exposure: Exposure,
}

/// Where a service is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServiceAt {
    /// At a URL that takes JSON-RPC 2.0 over HTTP.
    Http(String),
    /// A program that takes JSON-RPC 2.0, a line each, on its standard input.
    Child(String),
    /// Built in: says what it is told.
    Echo,
}

/// A text that describes no service.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseServiceError {
    /// It does not say where the service is.
    #[error(
        "`{0}` does not say where the service is; write NAME=http://HOST:PORT/PATH, or NAME=exec:COMMAND"
    )]
    Nowhere(String),
    /// It is somewhere we do not go.
    #[error("`{0}` is neither http://…, https://…, exec:COMMAND nor echo:")]
    Scheme(String),
    /// Its name is none.
    #[error(transparent)]
    Name(#[from] ParseNameError),
    /// Its version is none.
    #[error(transparent)]
    Version(#[from] ParseVersionError),
    /// A resource is named wrongly, or there are too many.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Why a service cannot be offered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfferFailure {
    /// Others would not take it, or there is one of the name.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// Its URL.
    #[error(transparent)]
    Http(#[from] HttpBackendError),
    /// Its program.
    #[error(transparent)]
    Child(#[from] ChildBackendError),
}

impl FromStr for ServiceSpec {
    type Err = ParseServiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let nowhere = || ParseServiceError::Nowhere(text.to_owned());
        let (what, at) = text.split_once('=').ok_or_else(nowhere)?;
        let at = match at.split_once(':') {
            Some(("http" | "https", _)) => ServiceAt::Http(at.to_owned()),
            Some(("exec", command)) if !command.trim().is_empty() => {
                ServiceAt::Child(command.trim().to_owned())
            }
            Some(("echo", "")) => ServiceAt::Echo,
            _ => return Err(ParseServiceError::Scheme(at.to_owned())),
        };
        let (what, resources) = what.split_once('#').unwrap_or((what, ""));
        let (name, version) = what
            .split_once('@')
            .map_or((what, None), |(name, version)| (name, Some(version)));
        let mut service = Service::new(name.parse()?);
        if let Some(version) = version {
            service.version = version.parse()?;
        }
        let resources = resources.split(',').filter(|resource| !resource.is_empty());
        service.resources = resources.map(str::to_owned).collect::<BTreeSet<String>>();
        service.check()?;
        Ok(Self {
            service,
            at,
            exposure: Exposure::default(),
        })
    }
}

impl fmt::Display for ServiceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Service {
            name,
            version,
            resources,
            ..
        } = &self.service;
        write!(f, "{}@{version}", name.as_str())?;
        if !resources.is_empty() {
            let resources: Vec<&str> = resources.iter().map(String::as_str).collect();
            write!(f, "#{}", resources.join(","))?;
        }
        match &self.at {
            ServiceAt::Http(url) => write!(f, "={url}"),
            ServiceAt::Child(command) => write!(f, "=exec:{command}"),
            ServiceAt::Echo => write!(f, "=echo:"),
        }
    }
}

impl ServiceSpec {
    /// What answers its calls.
    ///
    /// # Errors
    /// When there can be nothing of the kind.
    fn backend(&self) -> Result<Arc<dyn Backend>, OfferFailure> {
        Ok(match &self.at {
            ServiceAt::Http(url) => Arc::new(HttpBackend::new(url)?),
            ServiceAt::Child(command) => Arc::new(ChildBackend::start(self.service.name.clone(), command)?),
            ServiceAt::Echo => Arc::new(Echo),
        })
    }
}

/// Offers what `--service` describes.
///
/// # Errors
/// When it cannot be.
pub(crate) fn offer(federation: &Federation, spec: &ServiceSpec) -> Result<(), OfferFailure> {
    federation.offer_to(spec.service.clone(), spec.backend()?, spec.exposure.clone())?;
    Ok(())
}

/// Offers the built-in `echo`, by which anybody finds out whether a call comes through, where the user offers none of the name.
pub(crate) fn offer_echo(federation: &Federation) {
    let Ok(name) = "echo".parse() else { return };
    let mut service = Service::new(name);
    service.methods = ["echo", "echos"].map(str::to_owned).into();
    if let Err(error) = federation.offer(service, Arc::new(Echo)) {
        debug!(%error, "the built-in echo is not offered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_a_name_and_a_place_and_perhaps_a_version_and_resources() {
        let spec: ServiceSpec = "blog=http://127.0.0.1:9000/rpc".parse().unwrap();
        assert_eq!(spec.service.name.as_str(), "blog");
        assert_eq!(spec.at, ServiceAt::Http("http://127.0.0.1:9000/rpc".to_owned()));
        let spec: ServiceSpec = "blog@1.2.3#de,en=exec:python3 blog.py --lang=de".parse().unwrap();
        assert_eq!(spec.service.version.to_string(), "1.2.3");
        assert_eq!(
            spec.service.resources,
            BTreeSet::from(["de".to_owned(), "en".to_owned()])
        );
        assert_eq!(spec.at, ServiceAt::Child("python3 blog.py --lang=de".to_owned()));
        assert_eq!(
            spec.to_string(),
            "blog@1.2.3#de,en=exec:python3 blog.py --lang=de"
        );
        assert_eq!("echo=echo:".parse::<ServiceSpec>().unwrap().at, ServiceAt::Echo);
    }

    #[test]
    fn what_describes_no_service_is_refused_with_what_to_write() {
        let error = |text: &str| text.parse::<ServiceSpec>().unwrap_err().to_string();
        assert!(
            error("blog").contains("NAME=http://HOST:PORT/PATH"),
            "{}",
            error("blog")
        );
        assert!(error("blog=ftp://here").contains("exec:COMMAND"));
        assert!(error("blog=exec: ").contains("exec:COMMAND"));
        assert!(error("bl og=http://here").contains("names are letters"));
        assert!(error("blog@x=http://here").contains('x'));
        assert!(error("=http://here").contains("between 1 and"));
    }
}
