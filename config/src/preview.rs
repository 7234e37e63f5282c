//! Preview hosts: names that stand for an overlay, and for a service in it, where nothing can send a header.
//!
//! Under a baseline's domain, `{service}--{overlay}.{domain}` is a service as that overlay has it, and
//! `{overlay}.{domain}` is whatever it exposes there. Neither names nor ids have a `--`, so that a label can be
//! read in one way only; and one label is one certificate `*.{domain}`.

use std::fmt;
use std::str::FromStr;

use arrayvec::ArrayString;

use crate::name::{EnvironmentId, MAX_LABEL, ServiceName, is_label};
use crate::url::{Scheme, Url};

/// Where a baseline's previews are when it does not say: browsers resolve such names to this machine.
pub const DEFAULT_PREVIEW: &str = "http://localhost:7480";

/// Between a service and an overlay.
const JOINT: &str = "--";
/// What the labels of other scripts than Latin begin with (RFC 5890, section 2.3.1): never ours.
const PUNYCODE: &str = "xn--";

/// Where a baseline's previews are: a scheme, a domain and a port, as browsers reach the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previews {
    url: Url,
}

impl Default for Previews {
    fn default() -> Self {
        Self { url: Url { scheme: Scheme::Http, host: "localhost".into(), port: 7480 } }
    }
}

impl FromStr for Previews {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url: Url = text.parse()?;
        let is_name = url.host.split('.').all(|label| is_label(label.as_bytes())) && url.host.len() <= 253;
        match url.scheme {
            Scheme::Http | Scheme::Https if is_name && url.host.parse::<std::net::IpAddr>().is_err() => {
                Ok(Self { url })
            }
            Scheme::Http | Scheme::Https => Err(format!("`{}` is no domain", url.host)),
            _ => Err("previews are for browsers: `http` or `https`".to_owned()),
        }
    }
}

/// As it is written: `https://preview.example.com`.
impl fmt::Display for Previews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_origin(&self.url, &self.url.host, f)
    }
}

fn write_origin(url: &Url, host: &str, out: &mut impl fmt::Write) -> fmt::Result {
    let (scheme, port) = if url.scheme == Scheme::Https { ("https", 443) } else { ("http", 80) };
    write!(out, "{scheme}://{host}")?;
    if url.port == port { Ok(()) } else { write!(out, ":{}", url.port) }
}

/// A host that stands for an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preview {
    label: ArrayString<MAX_LABEL>,
    /// How long the service's name is, where there is one.
    service: Option<usize>,
}

impl Preview {
    /// The service that it names.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.service.map(|length| &self.label[..length])
    }

    /// The environment that it names.
    #[must_use]
    pub fn environment(&self) -> &str {
        &self.label[self.service.map_or(0, |length| length + JOINT.len())..]
    }
}

/// What a host is, seen from a domain of previews.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// It has nothing to do with them.
    Other,
    /// A preview's.
    Preview(Preview),
    /// It is below the domain and stands for nothing: a preview's that was written wrong.
    Nothing,
}

/// A service whose preview host would be longer than a label can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLong(pub String);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the preview host `{}` would be longer than {MAX_LABEL} bytes", self.0)
    }
}

/// The label of a preview host.
///
/// # Errors
/// It would be longer than a label of DNS can be (RFC 1035, section 2.3.4).
pub fn label(service: Option<&ServiceName>, environment: &EnvironmentId) -> Result<String, TooLong> {
    let label = match service {
        Some(service) => [service.as_str(), JOINT, environment.as_str()].concat(),
        None => environment.as_str().to_owned(),
    };
    if label.len() <= MAX_LABEL { Ok(label) } else { Err(TooLong(label)) }
}

impl Previews {
    /// The domain, in lower case.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.url.host
    }

    /// Whether the domain is one that only this machine resolves.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.domain() == "localhost" || self.domain().ends_with(".localhost")
    }

    /// What a host is, in whatever case, without its port and without a dot at its end.
    #[must_use]
    pub fn read(&self, host: &str) -> Host {
        let at = host.len().checked_sub(self.domain().len() + 1);
        let split = at.and_then(|at| Some((host.get(..at)?, host.get(at..)?.strip_prefix('.')?)));
        match split {
            Some((label, domain)) if domain.eq_ignore_ascii_case(self.domain()) => {
                Self::preview(label).map_or(Host::Nothing, Host::Preview)
            }
            _ => Host::Other,
        }
    }

    /// What a label below the domain stands for.
    #[must_use]
    pub fn preview(label: &str) -> Option<Preview> {
        let mut label = ArrayString::from(label).ok()?;
        label.make_ascii_lowercase();
        if label.starts_with(PUNYCODE) {
            return None;
        }
        let service = label.find(JOINT);
        let preview = Preview { label, service };
        let fine = is_label(preview.environment().as_bytes())
            && preview.service().is_none_or(|service| is_label(service.as_bytes()));
        fine.then_some(preview)
    }

    /// Whether browsers reach them over TLS.
    #[must_use]
    pub fn are_secure(&self) -> bool {
        self.url.scheme == Scheme::Https
    }

    /// The port at which browsers reach them.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.url.port
    }

    /// The same, where browsers reach a gateway at this port: on their own machine they know it by that alone.
    #[must_use]
    pub fn at_port(&self, port: u16) -> Self {
        let port = if self.is_local() { port } else { self.url.port };
        Self { url: Url { port, ..self.url.clone() } }
    }

    /// Where a label is: `https://web--alice.preview.example.com`.
    #[must_use]
    pub fn origin(&self, label: &str) -> String {
        let mut origin = String::new();
        // Writing to memory does not fail.
        let _ = write_origin(&self.url, &format!("{label}.{}", self.domain()), &mut origin);
        origin
    }

    /// The address of a preview, without path: `http://web--alice.localhost:7480`.
    ///
    /// # Errors
    /// See [`label`].
    pub fn link(
        &self,
        service: Option<&ServiceName>,
        environment: &EnvironmentId,
    ) -> Result<String, TooLong> {
        Ok(self.origin(&label(service, environment)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn previews(text: &str) -> Previews {
        text.parse().expect(text)
    }

    #[test]
    fn a_host_stands_for_a_service_of_an_overlay_or_for_an_overlay() {
        let local = Previews::default();
        assert_eq!(local, previews(DEFAULT_PREVIEW));
        for (host, expected) in [
            ("web--alice-payments.localhost", "web alice-payments"),
            ("WEB--Alice.LocalHost", "web alice"),
            ("alice.localhost", "- alice"),
            ("localhost", "other"),
            ("alicelocalhost", "other"),
            ("alice.localhost.example", "other"),
            ("", "other"),
            (".localhost", "nothing"),
            ("a.b.localhost", "nothing"),
            ("--alice.localhost", "nothing"),
            ("web--.localhost", "nothing"),
            ("a--b--c.localhost", "nothing"),
            ("web---alice.localhost", "nothing"),
            ("xn--alice.localhost", "nothing"),
            ("we_b.localhost", "nothing"),
            ("é.localhost", "nothing"),
        ] {
            let shown = match local.read(host) {
                Host::Other => "other".to_owned(),
                Host::Nothing => "nothing".to_owned(),
                Host::Preview(preview) => {
                    format!("{} {}", preview.service().unwrap_or("-"), preview.environment())
                }
            };
            assert_eq!(shown, expected, "{host}");
        }
        let longest = format!("{}.localhost", "a".repeat(63));
        assert!(matches!(local.read(&longest), Host::Preview(_)));
        assert_eq!(local.read(&format!("a{longest}")), Host::Nothing);
    }

    #[test]
    fn previews_on_this_machine_are_at_the_port_of_its_gateway_and_others_where_they_are_said_to_be() {
        assert_eq!(Previews::default().at_port(8081).to_string(), "http://localhost:8081");
        assert_eq!(previews("https://p.example.com").at_port(8081).to_string(), "https://p.example.com");
    }

    #[test]
    fn previews_are_at_a_domain_that_browsers_reach() {
        for (text, shown) in [
            ("https://preview.example.com", "https://preview.example.com"),
            ("https://preview.example.com:8443/", "https://preview.example.com:8443"),
            ("http://LOCALHOST:80", "http://localhost"),
        ] {
            assert_eq!(previews(text).to_string(), shown);
        }
        for text in
            ["preview.example.com", "h2c://a.b", "unix:/a", "https://10.0.0.1", "https://a..b", "https://a_b"]
        {
            assert!(text.parse::<Previews>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_link_is_read_as_what_it_was_made_of(
            service in prop::option::of("[a-z0-9]([a-z0-9]|-[a-z0-9]){0,14}"),
            environment in "[a-z0-9]([a-z0-9]|-[a-z0-9]){0,14}",
        ) {
            let previews = previews("https://preview.example.com");
            let service: Option<ServiceName> = service.map(|service| service.parse().expect("a name"));
            let environment: EnvironmentId = environment.parse().expect("an id");
            if let Ok(link) = previews.link(service.as_ref(), &environment) {
                let read = previews.read(&link["https://".len()..]);
                prop_assume!(!link["https://".len()..].starts_with(PUNYCODE));
                let Host::Preview(read) = read else { panic!("{link} is no preview's") };
                prop_assert_eq!(read.service(), service.as_ref().map(ServiceName::as_str));
                prop_assert_eq!(read.environment(), environment.as_str());
            }
        }

        #[test]
        fn no_host_panics(host in "\\PC{0,80}") {
            let _ = Previews::default().read(&host);
            let _ = Previews::default().read(&format!("{host}.localhost"));
        }
    }
}
