//! The pages of the documentation that the code itself writes: `docs/cli.md`, `docs/settings.md`, `docs/metrics.md`, `docs/api.md`.
//!
//! What is between their marks is what this makes of the command line, the settings' schema, the metrics' own help, and the OpenAPI document.
//! `UPDATE_REFERENCE=1 cargo test -p overlane --lib reference::` writes it anew.
#![allow(clippy::unwrap_used)]

mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::{Arg, ArgAction, Command};
use overlane_config::name::{EnvironmentId, ServiceName};

use crate::calls::{Call, Language, Outcome};
use crate::metrics::{self, ControlFigures, Counted};
use crate::plane::Gate;

const BEGIN: &str = "<!-- written by proxy/src/reference.rs -->\n";
const END: &str = "<!-- end -->\n";

/// Holds the written part of a page, or writes it.
fn held(page: &str, written: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (there, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{written}{END}{after}")).unwrap();
    } else {
        assert_eq!(there, written, "docs/{page} is not what the code says: UPDATE_REFERENCE=1 writes it");
    }
}

/// A cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// A flag or a place, as it is written.
fn written(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let value = names.iter().map(|name| format!("<{name}>")).collect::<Vec<_>>().join(" ");
    if arg.is_positional() {
        return value;
    }
    let mut flag = arg.get_short().map_or_else(String::new, |short| format!("-{short}, "));
    flag.push_str(&format!("--{}", arg.get_long().unwrap_or_default()));
    if matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
        let optional = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
        let shown = value.trim_matches(['<', '>']);
        flag.push_str(&if optional { format!("[={shown}]") } else { format!(" {shown}") });
    }
    flag
}

fn row(arg: &Arg) -> String {
    let mut what = arg.get_long_help().or(arg.get_help()).map_or_else(String::new, ToString::to_string);
    let values: Vec<_> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if !values.is_empty() && !values.iter().any(|value| value == "false") {
        write!(what, ": {}", values.join(", ")).unwrap();
    }
    let variable = arg.get_env().map_or_else(String::new, |name| format!("`{}`", name.display()));
    let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    // A switch that is not given is off, which nobody has to be told.
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let default =
        if default.is_empty() || switch { String::new() } else { format!("`{}`", default.join(",")) };
    format!("| `{}` | {variable} | {default} | {} |\n", written(arg).replace('|', "\\|"), cell(&what))
}

fn arguments(command: &Command, besides: &BTreeSet<String>) -> String {
    let own = command.get_arguments().filter(|arg| {
        !arg.is_hide_set()
            && !besides.contains(arg.get_id().as_str())
            && !["help", "version"].contains(&arg.get_id().as_str())
    });
    let rows: String = own.map(row).collect();
    match rows.is_empty() {
        true => String::new(),
        false => format!("| | variable | default | |\n|---|---|---|---|\n{rows}\n"),
    }
}

/// A command and those below it.
fn section(command: &Command, path: &str, globals: &BTreeSet<String>, out: &mut String) {
    for below in command.get_subcommands().filter(|each| !each.is_hide_set() && each.get_name() != "help") {
        let path = format!("{path} {}", below.get_name());
        let about =
            below.get_long_about().or(below.get_about()).map_or_else(String::new, ToString::to_string);
        let aliases: Vec<_> = below.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
        let aliases =
            if aliases.is_empty() { String::new() } else { format!(" Also {}.", aliases.join(", ")) };
        writeln!(out, "## {path}\n\n{}.{aliases}\n", cell(about.trim_end_matches('.'))).unwrap();
        out.push_str(&arguments(below, globals));
        section(below, &path, globals, out);
    }
}

#[test]
fn the_page_of_the_command_line_is_what_it_says_of_itself() {
    let mut command = crate::cli::command();
    command.build();
    let globals: BTreeSet<_> = command
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .map(|arg| arg.get_id().to_string())
        .collect();
    let mut text = "\n## For every command\n\n".to_owned();
    text.push_str(&arguments(&command, &BTreeSet::new()));
    section(&command, "overlane", &globals, &mut text);
    held("cli.md", &text);
}

/// Metrics of a process that has seen one of everything.
fn every_metric() -> String {
    let (service, overlay): (ServiceName, EnvironmentId) = ("web".parse().unwrap(), "alice".parse().unwrap());
    let gate = Gate::of_tests();
    metrics::count_call(Call {
        service: Some(service.clone()),
        peer: "ledger".parse().unwrap(),
        outcome: Outcome::Kept,
        language: Language::Unknown,
    });
    metrics::observe(&Counted::of_tests(&overlay, &service, &gate), Duration::from_millis(2), None);
    let control = ControlFigures {
        expires: vec![(overlay.clone(), 1.0)],
        certificates: vec![("tls.crt".to_owned(), 1.0)],
        certificate_failures: Some(0),
        token_key_failures: Some(0),
        cache: Some(Default::default()),
        spans: Some(Default::default()),
        ..ControlFigures::default()
    };
    metrics::render(&metrics::counted(), &control, metrics::OVERLAY_LABELS)
}

/// What the text of `/metrics` says of one.
#[derive(Default)]
struct Told {
    help: String,
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

fn told(text: &str) -> BTreeMap<String, Told> {
    let mut all: BTreeMap<String, Told> = BTreeMap::new();
    for line in text.lines() {
        let words = |line: &str| line.split_once(' ').map(|(name, rest)| (name.to_owned(), rest.to_owned()));
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(words) {
            all.entry(name).or_default().help = help;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(words) {
            all.entry(name).or_default().kind = kind;
        } else if let Some((name, labels)) = line.split_once('}').and_then(|(head, _)| head.split_once('{')) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let found = all.iter_mut().find(|(known, _)| *known == name || Some(known.as_str()) == family);
            if let Some((_, told)) = found {
                for (label, value) in labels.split(',').filter_map(|pair| pair.split_once('=')) {
                    told.labels
                        .entry(label.to_owned())
                        .or_default()
                        .insert(value.trim_matches('"').to_owned());
                }
            }
        }
    }
    all
}

#[test]
fn the_page_of_metrics_is_what_they_say_of_themselves() {
    let mut text = "\n| metric | type | labels | what |\n|---|---|---|---|\n".to_owned();
    // Those of the process are what the system has of it.
    let all = told(&every_metric()).into_iter().filter(|(name, _)| !name.starts_with("process_"));
    for (name, Told { help, kind, labels }) in all {
        // Those of which one was made here have values of ours; the others have all that there are.
        let shown = labels.iter().filter(|(label, _)| *label != "le").map(|(label, values)| {
            match values.len() > 1 && values.len() <= 8 {
                true => format!(
                    "`{label}`: {}",
                    values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")
                ),
                false => format!("`{label}`"),
            }
        });
        let shown = shown.collect::<Vec<_>>().join("; ");
        writeln!(text, "| `{name}` | {kind} | {shown} | {} |", cell(help.trim_end_matches('.'))).unwrap();
    }
    text.push('\n');
    held("metrics.md", &text);
}

#[test]
fn the_page_of_the_api_is_what_its_document_says() {
    let document: serde_json::Value = serde_json::from_str(include_str!("api/openapi.json")).unwrap();
    let mut text = "\n| request | what | answers |\n|---|---|---|\n".to_owned();
    for (path, item) in document["paths"].as_object().unwrap() {
        let only_here = if item["servers"].is_array() { " (the admin listener alone)" } else { "" };
        for (method, operation) in
            item.as_object().unwrap().iter().filter(|(_, operation)| operation["responses"].is_object())
        {
            let answers: Vec<_> =
                operation["responses"].as_object().unwrap().keys().map(String::as_str).collect();
            let what = cell(operation["summary"].as_str().unwrap());
            let method = method.to_uppercase();
            writeln!(text, "| `{method} {path}` | {what}{only_here} | {} |", answers.join(", ")).unwrap();
        }
    }
    text.push('\n');
    held("api.md", &text);
}
