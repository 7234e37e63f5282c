//! Where spans are sent, and which: OpenTelemetry's variables, flags over them, and the settings file under both.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use clap::Args;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::Sampler;
use crate::settings::{SettingsError, error};

/// Where spans go, below the base of a collector's urls.
const TRACES: &str = "v1/traces";
/// The protocol that is spoken, by its name in the variables.
const SPOKEN: &str = "http/protobuf";
/// How long a collector may take, where nobody says.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often what waits is sent, and what was not taken for the first time.
const EVERY: Duration = Duration::from_secs(1);

/// The flags of traces; their variables are OpenTelemetry's. Those that are hidden stand for variables that have no flag.
#[derive(Debug, Clone, Default, Args)]
pub struct TraceArgs {
    /// Send spans to this collector (OTLP over HTTP): the base of its urls, such as http://127.0.0.1:4318
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// The same as a whole url, for spans alone; goes before --otlp-endpoint
    #[arg(long, hide = true, value_name = "URL", env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")]
    pub otlp_traces_endpoint: Option<String>,
    /// Header fields of what is sent to the collector
    #[arg(long, value_name = "NAME=VALUE,…", env = "OTEL_EXPORTER_OTLP_HEADERS", hide_env_values = true)]
    pub otlp_headers: Option<String>,
    /// The same for spans alone; goes before --otlp-headers
    #[arg(
        long,
        hide = true,
        value_name = "NAME=VALUE,…",
        env = "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        hide_env_values = true
    )]
    pub otlp_traces_headers: Option<String>,
    /// What is spoken to the collector: http/protobuf
    #[arg(long, hide = true, value_name = "PROTOCOL", env = "OTEL_EXPORTER_OTLP_PROTOCOL")]
    pub otlp_protocol: Option<String>,
    /// The same for spans alone; goes before --otlp-protocol
    #[arg(long, hide = true, value_name = "PROTOCOL", env = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")]
    pub otlp_traces_protocol: Option<String>,
    /// How long the collector may take to answer, in milliseconds; 10000 by default
    #[arg(long, hide = true, value_name = "MS", env = "OTEL_EXPORTER_OTLP_TIMEOUT")]
    pub otlp_timeout: Option<String>,
    /// Which requests have spans: always_on, always_off, traceidratio, or parentbased_… of these; parentbased_always_on by default
    #[arg(long, value_name = "SAMPLER", env = "OTEL_TRACES_SAMPLER")]
    pub traces_sampler: Option<String>,
    /// The share of traces that traceidratio takes, from 0 to 1
    #[arg(long, value_name = "RATIO", env = "OTEL_TRACES_SAMPLER_ARG")]
    pub traces_sampler_arg: Option<String>,
    /// What the proxy is called in traces; overlane by default
    #[arg(long, value_name = "NAME", env = "OTEL_SERVICE_NAME")]
    pub traces_service_name: Option<String>,
    /// What else its spans say of it
    #[arg(long, value_name = "KEY=VALUE,…", env = "OTEL_RESOURCE_ATTRIBUTES")]
    pub traces_attributes: Option<String>,
    /// Switches spans off, whatever else is said
    #[arg(long, value_name = "true|false", hide = true, env = "OTEL_SDK_DISABLED")]
    pub otel_sdk_disabled: Option<String>,
}

/// What the settings file says of traces.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TracesFile {
    endpoint: Option<String>,
    headers: BTreeMap<String, String>,
    sampler: Option<String>,
    ratio: Option<f64>,
    service_name: Option<String>,
    attributes: BTreeMap<String, String>,
}

/// Where spans are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Its host, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What it is called, with the port where that is not the scheme's.
    pub authority: String,
    /// Where it takes spans, with a query where it wants one.
    pub path: String,
}

impl Collector {
    /// Where to connect.
    #[must_use]
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Collector {
    /// Without query: there may be a secret in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority)
    }
}

/// How spans are made and sent.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// To whom.
    pub collector: Collector,
    /// Header fields of what is sent.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long the collector may take to answer.
    pub timeout: Duration,
    /// How often what waits is sent; what was not taken is sent again after that time, then twice that, and so on.
    pub every: Duration,
    /// Which requests have spans.
    pub sampler: Sampler,
    /// What the proxy is called.
    pub service_name: String,
    /// What else is said of it.
    pub attributes: Vec<(String, String)>,
}

impl TraceSettings {
    /// Those with which all spans go to a collector, whose url this is the base of.
    ///
    /// # Errors
    /// It is no such url.
    pub fn of(endpoint: &str) -> Result<Self, SettingsError> {
        let args = TraceArgs { otlp_endpoint: Some(endpoint.to_owned()), ..TraceArgs::default() };
        let settings = Self::merge(args, None)?;
        settings.ok_or_else(|| error("an empty endpoint", "such as `http://127.0.0.1:4318`"))
    }

    /// Merges flags, variables and file; nothing where nobody says where the collector is.
    ///
    /// # Errors
    /// A value that cannot be.
    pub fn merge(args: TraceArgs, file: Option<TracesFile>) -> Result<Option<Self>, SettingsError> {
        let told = |value: Option<String>| value.filter(|value| !value.trim().is_empty());
        let file = file.unwrap_or_default();
        let off = told(args.otel_sdk_disabled).is_some_and(|said| said.eq_ignore_ascii_case("true"));
        let whole = told(args.otlp_traces_endpoint);
        let collector = match (whole, told(args.otlp_endpoint).or(told(file.endpoint))) {
            _ if off => return Ok(None),
            (Some(whole), _) => collector("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &whole, None)?,
            (None, Some(base)) => collector("OTEL_EXPORTER_OTLP_ENDPOINT", &base, Some(TRACES))?,
            (None, None) => return Ok(None),
        };
        if !cfg!(feature = "otlp") {
            return Err(error(
                "traces were left out of this build",
                "take a released binary, or build with `--features otlp`; without a collector's url nothing is to be sent",
            ));
        }
        if let Some(other) =
            told(args.otlp_traces_protocol).or(told(args.otlp_protocol)).filter(|it| it != SPOKEN)
        {
            return Err(error(
                format!("OTEL_EXPORTER_OTLP_PROTOCOL is `{other}`, and spans are sent by `{SPOKEN}` only"),
                "set it to `http/protobuf`, and the endpoint to the port at which the collector speaks HTTP: mostly 4318",
            ));
        }
        let headers = match told(args.otlp_traces_headers).or(told(args.otlp_headers)) {
            Some(list) => pairs("OTEL_EXPORTER_OTLP_HEADERS", &list)?,
            None => file.headers.into_iter().collect(),
        };
        let said = told(args.traces_attributes);
        let said = said.map(|list| pairs("OTEL_RESOURCE_ATTRIBUTES", &list)).transpose()?.unwrap_or_default();
        let mut attributes = file.attributes;
        attributes.extend(said);
        let of_attributes = attributes.remove("service.name");
        let service_name = told(args.traces_service_name).or(told(file.service_name)).or(of_attributes);
        Ok(Some(Self {
            collector,
            headers: headers.iter().map(|(name, value)| field(name, value)).collect::<Result<_, _>>()?,
            timeout: within(told(args.otlp_timeout).as_deref())?,
            every: EVERY,
            sampler: sampler(
                told(args.traces_sampler).or(told(file.sampler)).as_deref(),
                told(args.traces_sampler_arg).as_deref(),
                file.ratio,
            )?,
            service_name: service_name.unwrap_or_else(|| "overlane".to_owned()),
            attributes: attributes.into_iter().collect(),
        }))
    }
}

/// The collector at a url, to which `below` is added where it is the base of several.
fn collector(key: &str, text: &str, below: Option<&str>) -> Result<Collector, SettingsError> {
    let wrong = |why: &str| {
        error(
            format!("{key}: `{}` {why}", loggable(text)),
            "name the collector's url, with its scheme: `http://127.0.0.1:4318`",
        )
    };
    let uri: Uri = text.trim().parse().map_err(|_| wrong("is no url"))?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong("begins neither with `http://` nor with `https://`")),
    };
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.ok_or_else(|| wrong("names no host"))?;
    if authority.as_str().contains('@') {
        return Err(error(
            format!("{key} has a password in it"),
            "put it into OTEL_EXPORTER_OTLP_HEADERS: `authorization=Basic …`",
        ));
    }
    let path = match below {
        Some(below) => format!("{}/{below}", uri.path().trim_end_matches('/')),
        None => uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned(),
    };
    Ok(Collector {
        tls,
        host: authority.host().trim_matches(['[', ']']).to_owned(),
        port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        authority: authority.to_string(),
        path,
    })
}

/// A url without what may be a secret in it.
fn loggable(url: &str) -> String {
    let rest = url.split('?').next().unwrap_or_default();
    let shown = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    crate::access::loggable_text(shown.as_bytes())
}

/// `KEY=VALUE` by commas, values in percent-encoding (W3C Baggage).
fn pairs(key: &str, list: &str) -> Result<Vec<(String, String)>, SettingsError> {
    let pair = |pair: &str| {
        let (name, value) =
            pair.split_once('=').filter(|(name, _)| !name.trim().is_empty()).ok_or_else(|| {
                // What it is may be a secret.
                error(
                    format!("{key} has a part without `NAME=`"),
                    "write it as `NAME=VALUE,NAME=VALUE`, a comma in a value as `%2C`",
                )
            })?;
        let value = percent_decode_str(value.trim()).decode_utf8_lossy().into_owned();
        Ok((name.trim().to_owned(), value))
    };
    list.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

fn field(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), SettingsError> {
    let wrong = || {
        error(
            format!("the collector's header `{name}` cannot be sent"),
            "names are tokens, and values one line",
        )
    };
    let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok((name.parse().map_err(|_| wrong())?, value))
}

fn within(millis: Option<&str>) -> Result<Duration, SettingsError> {
    let Some(text) = millis else { return Ok(TIMEOUT) };
    let millis = text.trim().parse().ok().filter(|millis| (1..=10_000).contains(millis));
    let wrong = || error(format!("OTEL_EXPORTER_OTLP_TIMEOUT is `{text}`"), "milliseconds, from 1 to 10000");
    millis.map(Duration::from_millis).ok_or_else(wrong)
}

fn sampler(name: Option<&str>, arg: Option<&str>, of_file: Option<f64>) -> Result<Sampler, SettingsError> {
    let told = arg.map(|text| {
        let wrong = || {
            error(
                format!("OTEL_TRACES_SAMPLER_ARG is `{text}`"),
                "a share of all traces, from 0 to 1, such as `0.01`",
            )
        };
        text.trim().parse().map_err(|_| wrong())
    });
    let ratio: Option<f64> = told.transpose()?.or(of_file);
    if let Some(ratio) = ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
        return Err(error(format!("the share of traces is {ratio}"), "from 0 to 1, such as `0.01`"));
    }
    // Who says how many means these.
    let usual = if ratio.is_some() { "parentbased_traceidratio" } else { "parentbased_always_on" };
    let name = name.unwrap_or(usual);
    Sampler::named(name, ratio.unwrap_or(1.0)).ok_or_else(|| {
        error(format!("OTEL_TRACES_SAMPLER is `{name}`"), format!("one of {}", Sampler::NAMES.join(", ")))
    })
}

#[cfg(all(test, not(feature = "otlp")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_traces_refuses_a_collector_and_needs_none() {
        assert!(TraceSettings::of("http://127.0.0.1:4318").is_err());
        assert_eq!(TraceSettings::merge(TraceArgs::default(), None).expect("nothing is asked for"), None);
    }
}

#[cfg(all(test, feature = "otlp"))]
mod tests {
    use super::*;

    fn args(endpoint: &str) -> TraceArgs {
        TraceArgs { otlp_endpoint: Some(endpoint.to_owned()), ..TraceArgs::default() }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn without_an_endpoint_there_are_no_spans() {
        assert_eq!(TraceSettings::merge(TraceArgs::default(), None), Ok(None));
        assert_eq!(TraceSettings::merge(args(" "), None), Ok(None), "empty is as not set");
        let off = TraceArgs { otel_sdk_disabled: some("true"), ..args("http://a") };
        assert_eq!(TraceSettings::merge(off, None), Ok(None));
    }

    #[test]
    fn a_base_gets_the_path_of_traces_and_a_whole_url_stays_as_it_is() {
        for (endpoint, shown, address) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces", "127.0.0.1:4318"),
            (
                "https://otel.example.com/base/",
                "https://otel.example.com/base/v1/traces",
                "otel.example.com:443",
            ),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces", "[::1]:4318"),
        ] {
            let collector = TraceSettings::of(endpoint).expect(endpoint).collector;
            assert_eq!((collector.to_string(), collector.address()), (shown.to_owned(), address.to_owned()));
        }
        let whole = TraceArgs { otlp_traces_endpoint: some("http://b/in?key=s3cret"), ..args("http://a") };
        let collector = TraceSettings::merge(whole, None).expect("settings").expect("on").collector;
        assert_eq!((&*collector.path, &*collector.to_string()), ("/in?key=s3cret", "http://b/in"));
    }

    #[test]
    fn flags_go_before_the_file_and_a_ratio_stands_for_its_sampler() {
        let file: TracesFile = serde_yaml::from_str(
            "endpoint: http://a\nratio: 0.5\nserviceName: shop\nheaders: {x-a: '1'}\nattributes: {a: b, c: d}\n",
        )
        .expect("a file");
        let of_file =
            TraceSettings::merge(TraceArgs::default(), Some(file.clone())).expect("settings").expect("on");
        let half = Sampler::named("parentbased_traceidratio", 0.5);
        assert_eq!((Some(of_file.sampler), &*of_file.service_name, of_file.headers.len()), (half, "shop", 1));
        let told = TraceArgs {
            traces_sampler: some("always_off"),
            traces_attributes: some("a=x%2Cy,service.name=z"),
            otlp_headers: some("authorization=Bearer%20t, x-b = 2"),
            traces_service_name: some("edge"),
            ..args("http://b")
        };
        let both = TraceSettings::merge(told, Some(file)).expect("settings").expect("on");
        assert_eq!((Some(both.sampler), &*both.collector.host), (Sampler::named("always_off", 0.0), "b"));
        let attributes = [("a", "x,y"), ("c", "d")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!((&*both.service_name, both.attributes), ("edge", attributes.to_vec()));
        let headers: Vec<_> =
            both.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().ok())).collect();
        assert_eq!(headers, [("authorization", Some("Bearer t")), ("x-b", Some("2"))]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_write_and_without_secrets() {
        let wrong = [
            (args("127.0.0.1:4318"), "begins neither with"),
            (args("grpc://a:4317"), "begins neither with"),
            (args("http://u:s3cret@a"), "has a password in it"),
            (TraceArgs { otlp_protocol: some("grpc"), ..args("http://a") }, "by `http/protobuf` only"),
            (
                TraceArgs { otlp_traces_protocol: some("http/json"), ..args("http://a") },
                "by `http/protobuf` only",
            ),
            (TraceArgs { otlp_headers: some("s3cret"), ..args("http://a") }, "without `NAME=`"),
            (TraceArgs { otlp_headers: some("a=s3cret%0d%0a"), ..args("http://a") }, "`a` cannot be sent"),
            (TraceArgs { traces_sampler: some("jaeger_remote"), ..args("http://a") }, "is `jaeger_remote`"),
            (TraceArgs { traces_sampler_arg: some("1%"), ..args("http://a") }, "is `1%`"),
            (TraceArgs { traces_sampler_arg: some("1.5"), ..args("http://a") }, "is 1.5"),
            (TraceArgs { traces_sampler_arg: some("NaN"), ..args("http://a") }, "is NaN"),
            (TraceArgs { otlp_timeout: some("10s"), ..args("http://a") }, "is `10s`"),
        ];
        for (args, part) in wrong {
            let refused = TraceSettings::merge(args, None).expect_err(part);
            let said = format!("{refused} {}", refused.hint.as_deref().unwrap_or_default());
            assert!(said.contains(part) && !said.contains("s3cret"), "{said}");
        }
    }
}
