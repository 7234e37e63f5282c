//! `overlane tap`: requests as they pass, and how each was decided.

use std::collections::BTreeMap;

use bytes::BytesMut;
use clap::Args;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use memchr::memmem;
use serde_json::Value;
use tokio::sync::mpsc;

use super::output::{CliError, Colour, Output};
use super::status::Asked;
use crate::access::is_hidden;
use crate::decisions::{Decision, Filter, Statuses};
use crate::settings::DEFAULT_ADMIN;
use crate::store::StoreAddress;
use crate::store::shared::Fault;

/// The longest event, in bytes: a decision is a few hundred.
const EVENT: usize = 64 * 1024;

/// `overlane tap`.
#[derive(Debug, Args)]
pub struct Tap {
    /// The admin address of a proxy, where no hub is asked (`--server`); repeatable
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: Vec<String>,
    /// Only requests whose key names this overlay
    #[arg(long, value_name = "ID")]
    overlay: Option<String>,
    /// Only calls of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only these statuses: 200, 5xx, or several by commas
    #[arg(long, value_name = "STATUS")]
    status: Option<Statuses>,
    /// Only paths that begin with this
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// How many a second are shown at most; the others are counted
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_rps: u32,
    /// End after so many
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<u64>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: TapFormat,
}

/// How requests are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum TapFormat {
    /// Columns for people
    #[default]
    Table,
    /// A line of JSON for each
    Json,
}

/// What comes of those who are asked.
enum Heard {
    /// It is connected.
    Begun,
    Decision(Box<Decision>),
    Missed(u64, String),
    Ended(String),
}

/// Shows requests until the reader goes away, or there were enough.
///
/// # Errors
/// Nobody answers, or nobody goes on.
pub fn run(args: &Tap, store: Option<&StoreAddress>, out: &mut Output<'_>) -> Result<(), CliError> {
    let asked = Asked::all(store, &args.admin);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(show(args, asked, out))
}

async fn show(args: &Tap, asked: Vec<Asked>, out: &mut Output<'_>) -> Result<(), CliError> {
    let filter = Filter {
        overlay: args.overlay.clone(),
        service: args.service.clone(),
        status: args.status.clone(),
        path: args.path.clone(),
        ..Filter::default()
    };
    let path = format!("/api/v1/tap?{}&maxRps={}", filter.query(), args.max_rps).replace("?&", "?");
    let (heard, mut told) = mpsc::channel(256);
    let mut open = asked.len();
    for one in asked {
        tokio::spawn(listen(one, path.clone(), heard.clone()));
    }
    drop(heard);
    let (mut shown, mut begun, mut ends) = (0, false, Vec::new());
    while let Some(heard) = told.recv().await {
        match heard {
            Heard::Begun => {
                if !begun && args.output == TapFormat::Table {
                    out.note("Requests as they pass; Ctrl-C ends it.");
                }
                begun = true;
            }
            Heard::Missed(count, why) => out.note(format_args!("{}", missed(count, &why, args.max_rps))),
            Heard::Ended(why) => {
                open -= 1;
                ends.push(why);
                if open > 0 {
                    out.note(format_args!("warning: {}", ends.last().map_or("", |why| why)));
                }
            }
            Heard::Decision(decision) => {
                match args.output {
                    TapFormat::Table => out.line(row(&decision, out.colours()))?,
                    TapFormat::Json => out.line(serde_json::to_string(&decision).unwrap_or_default())?,
                }
                out.result().flush()?;
                shown += 1;
                if args.limit.is_some_and(|limit| shown >= limit) {
                    return Ok(());
                }
            }
        }
    }
    let hint = "name a hub with `--server URL`, or a proxy's admin listener with `--admin HOST:PORT`";
    let error = CliError::failure(ends.join("\n"));
    Err(if begun { error } else { error.hint(hint) })
}

fn missed(count: u64, why: &str, most: u32) -> String {
    match why {
        "rate" => format!("{count} more were not shown: only {most} a second are (--max-rps)"),
        "overrun" => format!("{count} were missed: they were overwritten before they could be read"),
        why => format!("{count} were missed ({why})"),
    }
}

async fn listen(asked: Asked, path: String, heard: mpsc::Sender<Heard>) {
    let why = match asked.stream(&path).await {
        Ok(body) => {
            let _ = heard.send(Heard::Begun).await;
            let mut events = Events { body, bytes: BytesMut::new() };
            loop {
                match events.next().await {
                    Ok(Some(event)) => {
                        if heard.send(event).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break format!("{}: it stopped", asked.name()),
                    Err(why) => break format!("{}: {why}", asked.name()),
                }
            }
        }
        Err(refused) => Fault::from(refused).0,
    };
    let _ = heard.send(Heard::Ended(why)).await;
}

/// Server-sent events as they come.
struct Events {
    body: Incoming,
    bytes: BytesMut,
}

impl Events {
    /// The next that says something; `None` at the end.
    async fn next(&mut self) -> Result<Option<Heard>, String> {
        loop {
            while let Some(end) = memmem::find(&self.bytes, b"\n\n") {
                let event = self.bytes.split_to(end + 2);
                if let Some(heard) = heard(&String::from_utf8_lossy(&event)) {
                    return Ok(Some(heard));
                }
            }
            if self.bytes.len() > EVENT {
                return Err("an event is too long".to_owned());
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(why)) => return Err(why.to_string()),
                Some(Ok(frame)) => {
                    if let Ok(more) = frame.into_data() {
                        self.bytes.extend_from_slice(&more);
                    }
                }
            }
        }
    }
}

/// What an event says; nothing where that is a comment, or of a later version.
fn heard(event: &str) -> Option<Heard> {
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    match field("event")? {
        "decision" => serde_json::from_str(field("data")?).ok().map(Heard::Decision),
        "missed" => {
            let data: Value = serde_json::from_str(field("data")?).ok()?;
            Some(Heard::Missed(data["missed"].as_u64()?, data["why"].as_str().unwrap_or_default().to_owned()))
        }
        _ => None,
    }
}

/// A text that a client chose, as a terminal may show it.
pub(super) fn shown(text: &str) -> String {
    match text.contains(is_hidden) {
        false => text.to_owned(),
        true => text
            .chars()
            .flat_map(|c| if is_hidden(c) { c.escape_unicode().collect() } else { vec![c] })
            .collect(),
    }
}

/// What a status says at a glance.
pub(super) fn colour_of(status: u16) -> Colour {
    match status {
        1..=399 => Colour::Green,
        400..=499 => Colour::Yellow,
        _ => Colour::Red,
    }
}

/// Who sends it, and to whom.
pub(super) fn way(decision: &Decision) -> String {
    let to = decision.service.as_deref().unwrap_or(&decision.authority);
    match (&*decision.role, &decision.caller) {
        ("outbound", Some(caller)) => shown(&format!("{caller} → {to}")),
        ("outbound", None) => shown(&format!("? → {to}")),
        ("inbound", Some(own)) => shown(&format!("→ {own}")),
        (role, _) => shown(&format!("{role} → {to}")),
    }
}

/// The key, and how it was come by.
pub(super) fn key(decision: &Decision) -> String {
    let from = decision.key_from.as_str();
    match &decision.key {
        Some(key) => shown(&format!("{key} ({from})")),
        None => format!("- ({from})"),
    }
}

/// Who answered, and why that.
pub(super) fn served(decision: &Decision) -> String {
    let via = decision.via.as_deref().map(|via| format!(" {via}")).unwrap_or_default();
    let reason = decision.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    shown(&format!("{}{via}{reason}", decision.environment.as_deref().unwrap_or("-")))
}

/// A time of today, to the millisecond.
pub(super) fn time(decision: &Decision) -> &str {
    decision.at.get(11..23).unwrap_or("-")
}

/// How long it took.
pub(super) fn took(decision: &Decision) -> String {
    format!("{:.1} ms", decision.duration_ms)
}

fn row(decision: &Decision, colours: bool) -> String {
    let status = colour_of(decision.status).paint(&format!("{:>3}", decision.status), colours);
    let (way, served, key) = (way(decision), served(decision), key(decision));
    let line = format!(
        "{}  {status}  {:>10}  {:<7}  {way:<28}  {served:<34}  {key:<28}  {}",
        time(decision),
        took(decision),
        decision.method,
        shown(&decision.path)
    );
    line.trim_end().to_owned()
}

/// Columns of texts, as wide as the widest of each.
#[derive(Debug, Default)]
pub(super) struct Widths(BTreeMap<usize, usize>);

impl Widths {
    pub(super) fn of<const N: usize>(rows: &[[String; N]]) -> Self {
        let mut widths = BTreeMap::new();
        for (column, cell) in rows.iter().flat_map(|row| row.iter().enumerate()) {
            let width = widths.entry(column).or_insert(0);
            *width = cell.chars().count().max(*width);
        }
        Self(widths)
    }

    pub(super) fn pad(&self, column: usize, cell: &str) -> String {
        let missing = self.0.get(&column).map_or(0, |width| width.saturating_sub(cell.chars().count()));
        format!("{cell}{}", " ".repeat(missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_chose_moves_no_cursor() {
        assert_eq!(shown("/a\u{1b}[2J/\u{202e}b"), "/a\\u{1b}[2J/\\u{202e}b");
        let decision =
            Decision { path: "/\r\n".to_owned(), authority: "\u{9b}x".to_owned(), ..Decision::default() };
        assert!(!row(&decision, false).contains(is_hidden));
    }

    #[test]
    fn events_are_read_and_comments_are_not() {
        let told = |event| match heard(event) {
            Some(Heard::Decision(decision)) => format!("decision {}", decision.path),
            Some(Heard::Missed(count, why)) => format!("missed {count} {why}"),
            _ => "-".to_owned(),
        };
        assert_eq!(told("event: decision\ndata: {\"path\":\"/a\",\"later\":1}\n\n"), "decision /a");
        assert_eq!(told("event: missed\ndata: {\"missed\":3,\"why\":\"rate\"}\n\n"), "missed 3 rate");
        assert_eq!(told(": nothing new\n\n") + &told("event: other\ndata: {}\n\n"), "--");
    }
}
