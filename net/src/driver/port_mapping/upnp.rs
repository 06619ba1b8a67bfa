//! What is said to a router that speaks UPnP (Internet Gateway Device, versions 1 and 2): found by SSDP, asked by
//! SOAP. Pure: sends nothing.
//!
//! The XML is not parsed but searched, as other clients do, since routers write it in every way. All of it comes
//! from whoever answers in the local network, so nothing in it is used before it is checked.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::MapError;

/// Where UPnP's devices listen for searches.
pub(crate) const SSDP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);

/// The largest answer to a search that is read.
pub(crate) const DATAGRAM_MAX: usize = 1536;

/// The largest description or answer that is read. Descriptions have some 10 KiB.
pub(crate) const BODY_MAX: usize = 64 * 1024;

/// The longest path that is asked for.
const PATH_MAX: usize = 512;

/// Services that map ports, the better ones first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// UPnP's own numbers for why a port cannot be mapped.
pub(crate) const CONFLICT: u16 = 718;
pub(crate) const ONLY_PERMANENT: u16 = 725;

/// Searches for routers of either version.
pub(crate) fn searches() -> [String; 2] {
    ["2", "1"].map(|version| {
        format!(
            "M-SEARCH * HTTP/1.1\r\nHost: {SSDP}\r\nMan: \"ssdp:discover\"\r\nMX: 1\r\n\
             ST: urn:schemas-upnp-org:device:InternetGatewayDevice:{version}\r\n\r\n"
        )
    })
}

/// A place that an HTTP request goes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) socket: SocketAddrV4,
    pub(crate) path: String,
}

/// Where the description of a router is, as it says in its answer to a search.
///
/// Only a place on the router itself counts: an answer must not send us to third parties.
pub(crate) fn description(answer: &[u8], from: Ipv4Addr) -> Option<Place> {
    let answer = str::from_utf8(answer).ok()?;
    let mut lines = answer.lines();
    if !lines.next()?.starts_with("HTTP/1.1 200") {
        return None;
    }
    let location = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("location")
            .then_some(value.trim())
    })?;
    let place = absolute(location)?;
    (*place.socket.ip() == from).then_some(place)
}

/// A service of a router.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Service {
    pub(crate) place: Place,
    kind: &'static str,
}

impl Service {
    /// The service that maps ports in a router's description, which came from `place`.
    pub(crate) fn find(description: &str, place: &Place) -> Option<Self> {
        SERVICES.iter().find_map(|kind| {
            let service = description
                .split("<service>")
                .skip(1)
                .find(|service| element(service, "serviceType") == Some(*kind))?;
            let control = element(service, "controlURL")?;
            let place = match absolute(control) {
                // As with the description: nowhere else.
                Some(control) if control.socket.ip() == place.socket.ip() => control,
                Some(_) => return None,
                None if control.contains("://") => return None,
                None => Place {
                    socket: place.socket,
                    path: request_path(control)?,
                },
            };
            Some(Self { place, kind })
        })
    }

    /// Asks for the router's address outside.
    pub(crate) fn address_request(&self) -> String {
        self.action("GetExternalIPAddress", "")
    }

    /// Asks to map a port.
    pub(crate) fn map_request(&self, external: u16, internal: SocketAddrV4, lifetime: Duration) -> String {
        let (ip, port, seconds) = (internal.ip(), internal.port(), lifetime.as_secs());
        let arguments = format!(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
             <NewProtocol>UDP</NewProtocol><NewInternalPort>{port}</NewInternalPort>\
             <NewInternalClient>{ip}</NewInternalClient><NewEnabled>1</NewEnabled>\
             <NewPortMappingDescription>lapwing</NewPortMappingDescription>\
             <NewLeaseDuration>{seconds}</NewLeaseDuration>"
        );
        self.action("AddPortMapping", &arguments)
    }

    /// Asks to end a mapping.
    pub(crate) fn unmap_request(&self, external: u16) -> String {
        let arguments = format!(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort><NewProtocol>UDP</NewProtocol>"
        );
        self.action("DeletePortMapping", &arguments)
    }

    fn action(&self, name: &str, arguments: &str) -> String {
        let Self { place, kind } = self;
        let Place { socket, path } = place;
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{name} xmlns:u=\"{kind}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        );
        let size = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: {socket}\r\nConnection: close\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
             Content-Length: {size}\r\nSOAPAction: \"{kind}#{name}\"\r\n\r\n{body}"
        )
    }
}

/// Asks for a description.
pub(crate) fn description_request(place: &Place) -> String {
    let Place { socket, path } = place;
    format!("GET {path} HTTP/1.1\r\nHost: {socket}\r\nConnection: close\r\n\r\n")
}

/// Whether an action was done, from the status and body of the answer.
pub(crate) fn done(status: u16, body: &str) -> Result<(), MapError> {
    if status == 200 {
        return Ok(());
    }
    let code = element(body, "errorCode").and_then(|code| code.parse().ok());
    Err(MapError::Refused {
        code: code.unwrap_or(status),
        meaning: match code {
            Some(CONFLICT) => "another node of this network has the port",
            Some(ONLY_PERMANENT) => "only permanent mappings",
            Some(606) => "not authorized",
            Some(728) => "no resources",
            _ => "see the router's settings for UPnP",
        },
    })
}

/// The address outside, from the answer.
pub(crate) fn address(status: u16, body: &str) -> Result<Ipv4Addr, MapError> {
    done(status, body)?;
    let ip = element(body, "NewExternalIPAddress").and_then(|ip| ip.parse().ok());
    match ip {
        // Some say nothing while they are not connected, and some say 0.0.0.0.
        None | Some(Ipv4Addr::UNSPECIFIED) => Err(MapError::NoOutside),
        Some(ip) => Ok(ip),
    }
}

/// What is between the tags of the first element with this name, which has no attributes.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once("</")?;
    Some(value.trim())
}

/// The place that `http://IP:PORT/PATH` names.
fn absolute(url: &str) -> Option<Place> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let socket = match host.parse() {
        Ok(socket) => socket,
        Err(_) => SocketAddrV4::new(host.parse().ok()?, 80),
    };
    Some(Place {
        socket,
        path: request_path(path)?,
    })
}

/// A path that cannot smuggle a second line, or a space, into a request.
fn request_path(path: &str) -> Option<String> {
    let visible = path.bytes().all(|byte| byte.is_ascii_graphic());
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    (visible && path.len() <= PATH_MAX).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    #[test]
    fn an_answer_to_a_search_names_the_description() {
        let answer = b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nLocation: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n";
        let place = description(answer, ROUTER).unwrap();
        assert_eq!(place.socket, SocketAddrV4::new(ROUTER, 5000));
        assert_eq!(place.path, "/rootDesc.xml");
    }

    #[test]
    fn an_answer_that_points_elsewhere_is_ignored() {
        for location in [
            "http://192.0.2.1:80/",
            "http://router.example/",
            "https://192.168.1.1/",
            "http://192.168.1.1:80/a b",
            "",
        ] {
            let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n");
            assert_eq!(description(answer.as_bytes(), ROUTER), None, "{location}");
        }
        assert_eq!(
            description(
                b"NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n\r\n",
                ROUTER
            ),
            None
        );
        assert_eq!(description(&[0xff; 100], ROUTER), None);
    }

    #[test]
    fn the_better_service_is_found_and_asked_where_it_says() {
        let place = place();
        for (control, path) in [
            ("/ctl/IPConn", "/ctl/IPConn"),
            ("ctl", "/ctl"),
            ("http://192.168.1.1:5000/x", "/x"),
        ] {
            let service = Service::find(&description_xml(control), &place).unwrap();
            assert_eq!(service.kind, SERVICES[1]);
            assert_eq!(service.place.path, path);
        }
        // A service elsewhere is as good as none; the lesser one is on the router.
        let service = Service::find(&description_xml("http://192.0.2.1/x"), &place).unwrap();
        assert_eq!((service.kind, service.place.path.as_str()), (SERVICES[2], "/ppp"));
        assert_eq!(Service::find("<root></root>", &place), None);
    }

    #[test]
    fn a_request_says_its_own_length() {
        let service = Service::find(&description_xml("/ctl"), &place()).unwrap();
        let internal = SocketAddrV4::new([192, 168, 1, 7].into(), 4001);
        for request in [
            service.address_request(),
            service.map_request(4001, internal, Duration::from_secs(1200)),
            service.unmap_request(4001),
        ] {
            let (head, body) = request.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())));
        }
    }

    #[test]
    fn refusals_carry_the_routers_number() {
        let body = "<s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault>";
        assert!(matches!(
            done(500, body),
            Err(MapError::Refused { code: CONFLICT, .. })
        ));
        assert!(matches!(done(404, ""), Err(MapError::Refused { code: 404, .. })));
        assert_eq!(done(200, ""), Ok(()));
    }

    #[test]
    fn the_address_outside_is_read_if_there_is_one() {
        let body = |ip| format!("<u:R><NewExternalIPAddress>{ip}</NewExternalIPAddress></u:R>");
        assert_eq!(address(200, &body("203.0.113.1")), Ok([203, 0, 113, 1].into()));
        for none in ["", "0.0.0.0", "later"] {
            assert_eq!(address(200, &body(none)), Err(MapError::NoOutside));
        }
    }

    fn place() -> Place {
        Place {
            socket: SocketAddrV4::new(ROUTER, 5000),
            path: "/rootDesc.xml".to_owned(),
        }
    }

    fn description_xml(control: &str) -> String {
        format!(
            "<root><serviceList><service><serviceType>{}</serviceType><controlURL>/ppp</controlURL></service>\
             <service><serviceType>{}</serviceType><SCPDURL>/x</SCPDURL><controlURL>{control}</controlURL>\
             </service></serviceList></root>",
            SERVICES[2], SERVICES[1]
        )
    }
}
