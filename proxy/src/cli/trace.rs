//! `overlane trace`: one request, and the hops that it took.

mod tree;

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use overlane_config::carrier::{Form, Keys, baggage};
use overlane_config::name::{self, REQUIRE_HEADER, ROUTE_HEADER};
use overlane_config::route::Reason;
use overlane_config::route::receipt::{self, Item, Marks};
use serde_json::{Value, json};

use super::output::{CliError, Format, Output};
use crate::client;
use tree::Tree;

/// `overlane trace`.
#[derive(Debug, Args)]
pub struct Trace {
    /// Where to send it: http://HOST[:PORT]/PATH, or https
    #[arg(value_parser = url)]
    url: Uri,
    /// The overlay key, an id or several: in x-overlay-id and baggage
    #[arg(short, long, value_name = "ID", value_parser = keys)]
    key: Option<Keys>,
    /// A header, 'name: value'; repeatable
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = field)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Services that must be served by the key's own environment, or `*` for all that it owns; repeatable
    #[arg(long, value_name = "SERVICE,…", value_delimiter = ',')]
    require: Vec<String>,
    /// The method; POST where there is a body
    #[arg(short = 'X', long)]
    method: Option<Method>,
    /// A body
    #[arg(short, long)]
    data: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn url(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|why| format!("{why}; write http://HOST:PORT/PATH"))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("a user in a url: use `--header 'authorization: …'`".to_owned());
    }
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
        (Some("http" | "https"), _) => Err("there is no host in it".to_owned()),
        (Some(other), _) => Err(format!("`{other}` is neither http nor https")),
        (None, _) => Err(format!("write http://{text}")),
    }
}

fn keys(text: &str) -> Result<Keys, String> {
    Keys::parse([text.as_bytes()]).map_err(|why| why.to_string())?.ok_or_else(|| "it is empty".to_owned())
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write `name: value`")?;
    let name = name.trim().parse().map_err(|_| format!("`{name}` is no header name"))?;
    let value = value.trim().parse().map_err(|_| format!("`{value}` is no header value"))?;
    if name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING {
        return Err(format!("`{name}` follows from `--data`"));
    }
    Ok((name, value))
}

/// Sends the request and draws its hops.
///
/// # Errors
/// It could not be sent, a requirement is not met, or nothing says that the key's environment served.
pub fn run(args: &Trace, out: &mut Output<'_>) -> Result<(), CliError> {
    let keys = args.keys()?;
    let request = args.request(&keys)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = Instant::now();
    let response = runtime.block_on(args.send(request)).map_err(|why| {
        CliError::failure(why)
            .hint("is something listening there? `overlane check` tries a proxy's upstreams")
    })?;
    let traced = Traced { args, keys, took: started.elapsed(), response };
    let lines: Vec<&[u8]> =
        traced.response.headers().get_all(ROUTE_HEADER).iter().map(HeaderValue::as_bytes).collect();
    let lists: Vec<_> = lines.iter().filter_map(|line| receipt::parse(line).ok()).collect();
    let unreadable = lines.len() - lists.len();
    let hops = lists.concat();
    let failure = traced.failure(&hops);
    if args.json {
        out.value(&traced.json(&hops, unreadable, failure.as_ref()), Format::Json)?;
    } else {
        traced.print(&hops, out)?;
    }
    match unreadable {
        0 => {}
        1 => out.note(format_args!("1 line of {ROUTE_HEADER} is no receipt, and was left out")),
        many => out.note(format_args!("{many} lines of {ROUTE_HEADER} are no receipts, and were left out")),
    }
    failure.map_or(Ok(()), Err)
}

impl Trace {
    /// The key that the request carries.
    fn keys(&self) -> Result<Keys, CliError> {
        if let Some(keys) = &self.key {
            return Ok(keys.clone());
        }
        let carrier = name::HeaderName::default_key();
        let given = self.headers.iter().filter(|(name, _)| name == carrier.as_str());
        match Keys::parse(given.map(|(_, value)| value.as_bytes())) {
            Ok(Some(keys)) => Ok(keys),
            Ok(None) => Err(CliError::usage("there is no key, and only requests with a key get receipts")
                .hint("name an overlay with `--key ID`; `overlane overlay list` shows them")),
            Err(why) => Err(CliError::usage(format!("header `{}`: {why}", carrier.as_str()))),
        }
    }

    fn request(&self, keys: &Keys) -> Result<Request<Full<Bytes>>, CliError> {
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let method = match (&self.method, &self.data) {
            (Some(method), _) => method.clone(),
            (None, Some(_)) => Method::POST,
            (None, None) => Method::GET,
        };
        let mut request = Request::builder().method(method).uri(path);
        if self.headers.iter().all(|(name, _)| name != header::HOST) {
            let authority = self.url.authority().map_or("", |authority| authority.as_str());
            request = request.header(header::HOST, authority);
        }
        if self.key.is_some() {
            let mut member = Vec::new();
            baggage::write(baggage::MEMBER, Form::List, keys, &mut member);
            request = request
                .header(name::HeaderName::default_key().as_str(), keys.as_str())
                .header("baggage", member);
        }
        if !self.require.is_empty() {
            request = request.header(REQUIRE_HEADER, self.require.join(", "));
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let body = self.data.clone().unwrap_or_default();
        request.body(Full::new(Bytes::from(body))).map_err(|error| CliError::usage(error.to_string()))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        let host = self.url.host().unwrap_or_default();
        let tls = self.url.scheme_str() == Some("https");
        let port = self.url.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let address = format!("{host}:{port}");
        if tls {
            let name = host.trim_start_matches('[').trim_end_matches(']');
            return client::send_tls(&address, name, request).await;
        }
        client::send(&address, request).await
    }
}

/// A request that was answered.
struct Traced<'a> {
    args: &'a Trace,
    keys: Keys,
    took: Duration,
    response: Response<Bytes>,
}

impl Traced<'_> {
    fn is_own(&self, environment: &str) -> bool {
        self.keys.iter().any(|id| id == environment)
    }

    /// Whether it served: it may have been reached and failed, and an application may have swallowed that.
    fn is_served(&self, hop: &Item<'_>) -> bool {
        !(self.is_own(hop.environment) && Reason::is_failure(hop.reason))
    }

    /// Why it is not the answer of the key's environment, if it is not, and what to do.
    fn failure(&self, hops: &[Item<'_>]) -> Option<CliError> {
        if let Some(refused) = self.refused() {
            return Some(refused);
        }
        if hops.is_empty() {
            return Some(self.no_receipts());
        }
        self.unmet(hops).or_else(|| self.elsewhere(hops))
    }

    /// The answer of a proxy itself.
    fn refused(&self) -> Option<CliError> {
        let mut said = self.response.headers().get_all("proxy-status").iter();
        if !said.any(|value| value.as_bytes().starts_with(b"overlane")) {
            return None;
        }
        let status = self.response.status();
        let body = String::from_utf8_lossy(self.response.body());
        let Ok(problem) = serde_json::from_str::<Value>(&body) else {
            let mut lines = body.lines();
            let message = lines.next().unwrap_or_default();
            let refused = CliError::failure(format!("{} {message}", status.as_u16()));
            let hint = lines.find_map(|line| line.strip_prefix("hint: "));
            return Some(hint.into_iter().fold(refused, CliError::hint));
        };
        let text = |name: &str| problem[name].as_str().map(str::to_owned);
        let message = text("detail").unwrap_or_default();
        let reason = text("reason").unwrap_or_default();
        let refused = CliError::failure(format!("{} overlane: {message} ({reason})", status.as_u16()));
        Some(text("hint").into_iter().fold(refused, CliError::hint))
    }

    fn no_receipts(&self) -> CliError {
        CliError::failure(format!(
            "no receipts came back: nothing says which environment served, and `{}` counts as not reached",
            self.keys.as_str()
        ))
        .hint(format!(
            "ask a gateway of Overlane that trusts this machine (`--trust`); receipts are kept from everybody else. \
             With `routing.headerName` of its own a baseline may want the key in `-H`, and a proxy on the way must pass {ROUTE_HEADER} on"
        ))
    }

    /// A gateway that does not trust us, or is older, does not check what is required.
    fn unmet(&self, hops: &[Item<'_>]) -> Option<CliError> {
        let names = || self.args.require.iter().map(|name| name.trim()).filter(|name| *name != "*");
        let wrong =
            hops.iter().find(|hop| names().any(|name| name == hop.service) && !self.is_own(hop.environment));
        if let Some(Item { service, environment, reason, .. }) = wrong {
            let message = format!("`{service}` is required, and was served by `{environment}` ({reason})");
            return Some(
                CliError::failure(message).hint(format!("declare `{service}` in the key's blueprint")),
            );
        }
        let missing =
            names().find(|name| !hops.iter().any(|hop| hop.service == *name && self.is_served(hop)))?;
        Some(
            CliError::failure(format!("`{missing}` is required, and no hop is known to have served it"))
                .hint("send a request that calls it; a service without a sidecar hides its calls"),
        )
    }

    fn elsewhere(&self, hops: &[Item<'_>]) -> Option<CliError> {
        if hops.iter().any(|hop| self.is_own(hop.environment) && self.is_served(hop)) {
            return None;
        }
        let says = |reason: &str| hops.iter().any(|hop| hop.reason == reason);
        let hint = match () {
            () if says("untrusted") => "the proxy does not trust this machine: start it with `--trust`",
            () if says("unknown") => {
                "nobody there knows this key: `overlane overlay list` shows the overlays"
            }
            () if says("expired") => {
                "it expired: `overlane overlay apply --file FILE --ttl 4h` gives it more time"
            }
            () if hops.iter().any(|hop| !self.is_served(hop)) => {
                "its services were called and failed: start them, or correct their urls"
            }
            () if says("no-key") => "the key was lost on the way: `overlane doctor` says where",
            () if hops.iter().any(|hop| hop.hop.is_none() || hop.marks.any(Marks::PARTIAL)) => {
                "the calls of some of these services are not known: give each a sidecar of this version, before and behind it"
            }
            () => {
                "the request calls no service that the key's overlay owns; `overlane explain` shows one decision"
            }
        };
        Some(CliError::failure(format!("`{}` served nothing", self.keys.as_str())).hint(hint))
    }

    /// The services that the key's environment served, and those that others did: `web (staging)`.
    fn served<'h>(&self, hops: impl Iterator<Item = &'h Item<'h>>) -> (Vec<String>, Vec<String>) {
        let several = self.keys.iter().count() > 1;
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for hop in hops.filter(|hop| self.is_served(hop)) {
            let is_own = self.is_own(hop.environment);
            let text = match is_own && !several {
                true => hop.service.to_owned(),
                false => format!("{} ({})", hop.service, hop.environment),
            };
            let list = if is_own { &mut own } else { &mut others };
            if !list.contains(&text) {
                list.push(text);
            }
        }
        (own, others)
    }

    fn print(&self, hops: &[Item<'_>], out: &mut Output<'_>) -> Result<(), CliError> {
        let status = self.response.status();
        let (url, took) = (&self.args.url, self.took.as_secs_f64() * 1000.0);
        out.line(format_args!("{url}: {} in {took:.1} ms", phrase(status)))?;
        if hops.is_empty() {
            return Ok(());
        }
        let tree = Tree::of(hops);
        for line in tree.lines() {
            out.line(line)?;
        }
        let (own, others) = self.served(tree.hops());
        let key = self.keys.as_str();
        let own = if own.is_empty() { "nothing".to_owned() } else { own.join(", ") };
        match others.is_empty() {
            true => out.line(format_args!("`{key}` served {own}."))?,
            false => out.line(format_args!("`{key}` served {own}; others served {}.", others.join(", ")))?,
        }
        for (mark, meaning) in MEANINGS {
            if hops.iter().any(|hop| hop.marks.any(mark)) {
                out.note(meaning);
            }
        }
        if hops.len() > 1 && hops.iter().all(|hop| hop.hop.is_none()) {
            out.note(
                "these proxies name no hops: nearest to the origin first, and who called whom is not known",
            );
        }
        Ok(())
    }

    fn json(&self, hops: &[Item<'_>], unreadable: usize, failure: Option<&CliError>) -> Value {
        let hop = |hop: &Item<'_>| {
            json!({
                "service": hop.service,
                "environment": hop.environment,
                "via": hop.via.as_str(),
                "reason": hop.reason,
                "hop": hop.hop,
                "parent": hop.parent,
                "marks": hop.marks.names().collect::<Vec<_>>(),
            })
        };
        json!({
            "url": self.args.url.to_string(),
            "key": self.keys.iter().collect::<Vec<_>>(),
            "require": self.args.require,
            "status": self.response.status().as_u16(),
            "took_ms": self.took.as_secs_f64() * 1000.0,
            "hops": hops.iter().map(hop).collect::<Vec<_>>(),
            "unreadable": unreadable,
            "problem": failure.map(|failure| &failure.message),
            "hint": failure.and_then(|failure| failure.hint.as_ref()),
        })
    }
}

/// What marks mean, where there are such.
const MEANINGS: [(Marks, &str); 4] = [
    (
        Marks::PARTIAL,
        "partial: calls of this service may be missing; it has no sidecar, or called after its answer began",
    ),
    (Marks::RESTORED, "restored: the caller dropped the key, and its trace gave it back"),
    (
        Marks::CONTRADICTED,
        "contradicted: the request named several keys in different carriers; the first configured one won",
    ),
    (
        Marks::TRUNCATED,
        "truncated: there were more hops than a response's head can hold; those farthest from here are missing",
    ),
];

fn phrase(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}
