//! `overlane why`: what became of one request, hop by hop, and where its key went.

use clap::Args;
use http::StatusCode;

use super::environment::FormatArg;
use super::output::{CliError, Colour, Format, Output};
use super::status::Asked;
use super::tap::{Widths, colour_of, key, served, shown, time, took, way};
use crate::decisions::Decision;
use crate::decisions::story::Story;
use crate::settings::DEFAULT_ADMIN;
use crate::store::StoreAddress;
use crate::store::hub::Refused;
use crate::store::shared::Fault;

/// `overlane why`.
#[derive(Debug, Args)]
pub struct Why {
    /// The id of a trace (of `traceparent`), of a request (`x-request-id`), or of a hop (of `x-overlay-route`)
    id: String,
    /// The admin address of a proxy, where no hub is asked (`--server`); repeatable
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// Shows the hops of a request.
///
/// # Errors
/// Nobody answers (1), or nobody knows it (4).
pub fn run(args: &Why, store: Option<&StoreAddress>, out: &mut Output<'_>) -> Result<(), CliError> {
    let asked = Asked::all(store, &args.admin);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let id: String = form_urlencoded::byte_serialize(args.id.as_bytes()).collect();
    let path = format!("/api/v1/why/{}", id.replace('+', "%20"));
    let (mut hops, mut unknown, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for one in &asked {
        match runtime.block_on(one.get::<Story>(&path)) {
            Ok(story) => hops.extend(story.hops),
            Err(Refused::Status(StatusCode::NOT_FOUND, why)) => unknown.push(why),
            Err(refused) => faults.push(Fault::from(refused).0),
        }
    }
    if hops.is_empty() {
        return Err(match unknown.is_empty() {
            true => CliError::failure(faults.join("\n"))
                .hint("name a hub with `--server URL`, or a proxy's admin listener with `--admin HOST:PORT`"),
            false => CliError::not_found([unknown, faults].concat().join("\n")),
        });
    }
    faults.iter().for_each(|fault| out.note(format_args!("warning: {fault}")));
    let story = Story::of(args.id.clone(), hops);
    match args.format.output {
        Format::Json | Format::Yaml => {
            let value = serde_json::to_value(&story).map_err(|why| CliError::failure(why.to_string()))?;
            out.value(&value, args.format.output)
        }
        Format::Name => {
            story.hops.iter().filter_map(|hop| hop.hop.as_ref()).try_for_each(|hop| out.line(hop))
        }
        Format::Table | Format::Wide => tell(&story, args.format.output == Format::Wide, out),
    }
}

fn tell(story: &Story, wide: bool, out: &mut Output<'_>) -> Result<(), CliError> {
    let first = |of: fn(&Decision) -> Option<&String>| story.hops.iter().find_map(of).map(|text| shown(text));
    if let Some(asked) = story.hops.first() {
        let ids =
            [("trace", first(|hop| hop.trace.as_ref())), ("request", first(|hop| hop.request_id.as_ref()))];
        let ids: Vec<_> = ids.into_iter().filter_map(|(name, id)| Some(format!("{name} {}", id?))).collect();
        let of = if ids.is_empty() { String::new() } else { format!("   {}", ids.join(", ")) };
        out.line(format_args!("{} {}{of}", asked.method, shown(&asked.path)))?;
    }
    let tree = story.tree();
    let row = |(branch, hop): &(String, &Decision)| {
        [format!("{branch}{}", way(hop)), key(hop), served(hop), took(hop)]
    };
    let rows: Vec<_> = tree.iter().map(row).collect();
    let widths = Widths::of(&rows);
    for ((_, hop), [way, key, served, took]) in tree.iter().zip(&rows) {
        let status = colour_of(hop.status).paint(&format!("{:>3}", hop.status), out.colours());
        let cells = [widths.pad(0, way), widths.pad(1, key), widths.pad(2, served)].join("   ");
        let more = match wide {
            true => format!(
                "   {}   {}   {}",
                shown(&hop.proxy),
                hop.upstream.as_deref().map_or("-".into(), shown),
                hop.generation
            ),
            false => String::new(),
        };
        let line = format!("{}   {cells}   {status}   {took:>10}{more}", time(hop));
        out.line(line.trim_end())?;
    }
    if !story.findings.is_empty() {
        out.line("")?;
    }
    let colours = out.colours();
    story.findings.iter().try_for_each(|finding| {
        out.line(format_args!("{} {}", Colour::Bold.paint("•", colours), shown(finding)))
    })
}
