//! `explain`: every step of one decision, by the code of the request path.

use overlane_config::browser;
use overlane_config::carrier::{Arrived, Carriers, FieldLines, InvalidKey, Keys, Place, Seen};
use overlane_config::name::{EnvironmentId, HeaderName, ServiceName};
use overlane_config::preview::Preview;
use overlane_config::route::{
    self, Decision, Edits, HOP_HEADER, Listener, REQUIRE_HEADER, ROUTE_HEADER, Refusal, Request, Role,
    Served, Step, To, Tried,
};
use overlane_config::table::{Baseline, RoutingTable};
use overlane_config::time::UnixMillis;
use overlane_config::url::split_authority;
use serde::{Deserialize, Serialize};

use crate::plane::answer::Answer;

/// A request as somebody describes it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// `gateway` (the default), `outbound` or `inbound`.
    pub role: String,
    /// The service before which an inbound listener stands.
    pub service: Option<String>,
    /// The environment of a sidecar.
    pub environment: Option<String>,
    /// The listener's baseline; the only one in the store by default.
    pub baseline: Option<String>,
    /// The `Host`, or the authority that is called.
    pub host: String,
    /// The path.
    pub path: String,
    /// Header fields, in order.
    pub headers: Vec<(String, String)>,
    /// Whether the sender's overlay headers are not trusted.
    pub untrusted: bool,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The generation of the table; 0 offline.
    pub generation: u64,
    /// What was seen and decided, in order.
    pub steps: Vec<Explained>,
    /// `serve`, `application`, `pass-through`, `pass-through-with-key` or `refuse`.
    pub outcome: String,
    /// The receipt that the response carries.
    pub receipt: Option<String>,
    /// The urls of the upstream.
    pub upstream: Vec<String>,
    /// The overlay headers that go upstream.
    pub headers: Vec<(String, String)>,
    /// The proxy's own answer.
    pub refusal: Option<Refused>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What was seen or decided.
    pub text: String,
    /// The blueprint line that caused it: where, and the line itself.
    pub blueprint: Option<(String, String)>,
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The status.
    pub status: u16,
    /// The word for programs.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        let Answer { status, reason, message, hint, .. } = Answer::from(refusal);
        Self { status, reason: reason.to_owned(), message, hint }
    }
}

impl Question {
    fn listener(&self) -> Result<Listener, String> {
        let id = |text: &Option<String>| {
            text.as_deref().map(str::parse::<EnvironmentId>).transpose().map_err(|error| error.to_string())
        };
        let environment = id(&self.environment)?;
        let service = self.service.as_deref().map(str::parse::<ServiceName>).transpose();
        let service = service.map_err(|error| error.to_string())?;
        let role = match self.role.as_str() {
            "" | "gateway" => Role::Gateway,
            "outbound" => Role::Outbound { service: None, environment },
            "inbound" => {
                let service = service.ok_or("an inbound listener stands before a service: name it")?;
                Role::Inbound { service, environment }
            }
            other => {
                return Err(format!(
                    "the role `{}` is not one of gateway, outbound, inbound",
                    overlane_config::name::printable(other, 40)
                ));
            }
        };
        Ok(Listener { role, baseline: id(&self.baseline)? })
    }
}

/// Decides `question` in `table` and tells every step.
///
/// # Errors
/// The question itself is malformed.
pub fn explain<U>(
    table: &RoutingTable<U>,
    carriers: &Carriers,
    question: &Question,
    now: UnixMillis,
) -> Result<Explanation, String> {
    let listener = question.listener()?;
    let baseline = table.baseline(listener.baseline.as_ref());
    let key_header = baseline.map_or_else(HeaderName::default_key, |baseline| baseline.header.clone());
    let mut steps: Vec<Step> = Vec::new();
    let fields = &question.headers[..];
    let arrived = if question.untrusted {
        Ok(Arrived::default())
    } else {
        read(carriers, key_header.as_str(), fields, &mut steps)
    };
    let arrived = match arrived {
        Ok(arrived) => arrived,
        Err(error) => {
            return Ok(refused(steps, &Refusal::invalid_key(key_header.as_str(), &error)));
        }
    };
    let requires = || fields.lines(REQUIRE_HEADER).any(|line| !line.is_empty());
    if question.untrusted && carriers.any(key_header.as_str(), fields) && requires() {
        return Ok(refused(steps, &Refusal::untrusted(None)));
    }
    let first = |name| fields.lines(name).next().and_then(|value| std::str::from_utf8(value).ok());
    let require = fields.lines(REQUIRE_HEADER).map(String::from_utf8_lossy).collect::<Vec<_>>().join(",");
    let path = question.path.split('?').next().unwrap_or_default();
    let edge = matches!(listener.role, Role::Gateway);
    let preview = baseline.filter(|_| edge).and_then(|baseline| baseline.preview(&question.host));
    let (arrived, by_browser) = match baseline.filter(|_| edge && !question.untrusted) {
        Some(baseline) => browsers(baseline, preview.as_ref(), &question.host, fields, arrived, &mut steps),
        None => (arrived, false),
    };
    let request = Request {
        preview: preview.as_ref(),
        by_browser,
        authority: &question.host,
        path: if path.is_empty() { "/" } else { path },
        keys: arrived.keys.as_ref(),
        untrusted: question.untrusted,
        hop: first(HOP_HEADER).filter(|_| !question.untrusted),
        require: if question.untrusted { "" } else { &require },
    };
    let decision = route::decide(table, &listener, &request, now, &Tried::default(), &mut steps);
    Ok(match decision {
        Decision::Refuse(refusal) => refused(steps, &refusal),
        Decision::PassThrough(onward) => {
            let host = split_authority(&question.host).map_or("", |(host, _)| host);
            let (edits, outcome) = match carriers.keep_for.has(host) {
                true => (Edits::keep(onward, carriers, fields, question.untrusted), "pass-through-with-key"),
                false => (Edits::pass_through(carriers, fields, question.untrusted), "pass-through"),
            };
            Explanation {
                headers: headers(&edits, carriers, key_header.as_str()),
                outcome: outcome.to_owned(),
                ..told(steps)
            }
        }
        Decision::Serve(served) => {
            let edits = Edits::serve(&served, carriers, fields, question.untrusted);
            serve(steps, &served, headers(&edits, carriers, key_header.as_str()), arrived.keys.is_some())
        }
    })
}

/// What a browser's host, page or cookie adds to what carriers say: as the gateway has it.
fn browsers<U>(
    baseline: &Baseline<U>,
    preview: Option<&Preview>,
    host: &str,
    fields: &[(String, String)],
    arrived: Arrived,
    steps: &mut Vec<Step>,
) -> (Arrived, bool) {
    let secure = fields.lines("x-forwarded-proto").next() == Some(b"https");
    let choice = match preview {
        Some(preview) => Some(browser::by_host(preview)),
        None if arrived.keys.is_some() => None,
        None => browser::choose(baseline, host, fields, secure),
    };
    let Some((choice, keys)) = choice.and_then(|choice| {
        let keys = Keys::one(&choice.environment.parse().ok()?);
        Some((choice, keys))
    }) else {
        return (arrived, false);
    };
    let text = format!("{} says the key `{}`", choice.by.as_str(), keys.as_str());
    steps.push(Step { text, declared: None });
    let contradicted = arrived.contradicted || arrived.keys.is_some_and(|own| own != keys);
    (Arrived { keys: Some(keys), contradicted }, true)
}

/// Reads the key, and notes what each carrier says where that is not plain.
fn read(
    carriers: &Carriers,
    own: &str,
    fields: &[(String, String)],
    steps: &mut Vec<Step>,
) -> Result<Arrived, InvalidKey> {
    carriers.read(own, fields, |carrier, seen| {
        let text = match seen {
            Seen::Key(keys) if *carrier.place() != Place::Own => {
                format!("the carrier `{carrier}` names the key `{}`", keys.as_str())
            }
            Seen::Contradicts(keys) => {
                format!("the carrier `{carrier}` names another key, `{}`: it does not count", keys.as_str())
            }
            Seen::Invalid(why) => format!("the carrier `{carrier}` holds no valid id and is ignored: {why}"),
            Seen::Key(_) | Seen::Same => return,
        };
        steps.push(Step { text, declared: None });
    })
}

fn told(steps: Vec<Step>) -> Explanation {
    let explained = |step: Step| Explained {
        text: step.text,
        blueprint: step.declared.map(|declared| (declared.to_string(), declared.text().trim().to_owned())),
    };
    Explanation { steps: steps.into_iter().map(explained).collect(), ..Explanation::default() }
}

fn refused(steps: Vec<Step>, refusal: &Refusal) -> Explanation {
    Explanation { outcome: "refuse".to_owned(), refusal: Some(Refused::from(refusal)), ..told(steps) }
}

fn serve<U>(
    steps: Vec<Step>,
    served: &Served<'_, U>,
    headers: Vec<(String, String)>,
    carried: bool,
) -> Explanation {
    let (outcome, upstream) = match &served.to {
        To::Application => ("application", Vec::new()),
        To::Upstream { route, .. } => ("serve", route.urls.iter().map(ToString::to_string).collect()),
    };
    let receipt = carried.then(|| format!("{ROUTE_HEADER}: {}", served.receipt()));
    Explanation { outcome: outcome.to_owned(), receipt, upstream, headers, ..told(steps) }
}

/// The overlay headers that go upstream, as `name: value` pairs.
fn headers(edits: &Edits, carriers: &Carriers, key_header: &str) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    edits.write_lines(carriers, key_header, &mut lines);
    let text = String::from_utf8_lossy(&lines);
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    let hop = edits.hop.as_ref().map(|environment| (HOP_HEADER.to_owned(), environment.to_string()));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).chain(hop).collect()
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>2}. {}", number + 1, step.text)?;
            if let Some((place, line)) = &step.blueprint {
                writeln!(f, "      {place}: {line}")?;
            }
        }
        match self.outcome.as_str() {
            "application" => writeln!(f, "→ the application behind this sidecar")?,
            "pass-through" => writeln!(f, "→ passed through to its own authority, without overlay headers")?,
            "pass-through-with-key" => {
                writeln!(f, "→ passed through to its own authority, which is in `keepFor`")?;
            }
            "serve" if self.upstream.is_empty() => {
                writeln!(f, "→ pending: no address yet; requests are held, then answered 503")?;
            }
            "serve" => writeln!(f, "→ {}", self.upstream.join(", "))?,
            _ => {}
        }
        for (name, value) in &self.headers {
            writeln!(f, "  with {name}: {value}")?;
        }
        if let Some(receipt) = &self.receipt {
            writeln!(f, "  response has {receipt}")?;
        }
        if let Some(Refused { status, reason, message, hint }) = &self.refusal {
            writeln!(f, "→ {status} {reason}: {message}")?;
            if let Some(hint) = hint {
                writeln!(f, "  hint: {hint}")?;
            }
        }
        Ok(())
    }
}
