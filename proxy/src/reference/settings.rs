//! `docs/settings.md`: the schema's keys and words, the command line's flags and variables.
//!
//! That the schema has the keys that the reader has is held in `cli/schema.rs`; that its defaults are the reader's, here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use clap::Arg;
use serde_json::{Map, Value, json};

use crate::cli::schema;
use crate::settings::{RunArgs, Settings};

/// Flags whose key is not their name in camelCase.
const ELSEWHERE: [(&str, &str); 16] = [
    ("hub", "hub.address"),
    ("hub-open", "hub.open"),
    ("hub-read-tokens", "hub.readTokens"),
    ("hub-tokens", "hub.tokens"),
    ("hub-tunnels", "hub.tunnels"),
    ("otlp-endpoint", "traces.endpoint"),
    ("otlp-headers", "traces.headers"),
    ("tls-cert", "tls.certificates[].certificate"),
    ("tls-client-ca", "tls.clientCa"),
    ("tls-key", "tls.certificates[].key"),
    ("token-audience", "tokens.audience"),
    ("token-key", "tokens.keys"),
    ("traces-attributes", "traces.attributes"),
    ("traces-sampler", "traces.sampler"),
    ("traces-sampler-arg", "traces.ratio"),
    ("traces-service-name", "traces.serviceName"),
];
/// What a text has to look like, in a word.
const PATTERNS: [(&str, &str); 7] = [
    (r"\d", "duration"),
    (r"^(unix:/.+|\[[0-9A-Fa-f:.]+\]:\d+|[0-9.]+:\d+)$", "address, or unix:PATH"),
    (r"^(\[[0-9A-Fa-f:.]+\]:\d+|[0-9.]+:\d+)$", "address"),
    (r"^((http|https|h2c)://[^/?#@]+/?|unix:/.*)$", "url"),
    (r"^https?://", "url"),
    (r"^(?!.*--)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", "name"),
    (r"^0?[0-7]{3}$", "octal digits"),
];

/// The fields of an object, where a value may be one.
fn fields(schema: &Value) -> Option<&Map<String, Value>> {
    let forms = schema.get("anyOf").and_then(Value::as_array);
    let forms = forms.into_iter().flatten().chain([schema]);
    forms.filter_map(|form| form.get("properties")?.as_object()).next()
}

/// Every key of the settings file, by its path.
fn keys<'s>(schema: &'s Value, before: &str, found: &mut Vec<(String, &'s Value)>) {
    for (name, field) in fields(schema).into_iter().flatten() {
        let path = format!("{before}{name}");
        found.push((path.clone(), field));
        match field.get("items") {
            Some(items) => keys(items, &format!("{path}[]."), found),
            None => keys(field, &format!("{path}."), found),
        }
    }
}

fn range(name: &str, schema: &Value) -> String {
    match (schema.get("minimum"), schema.get("maximum")) {
        (Some(least), Some(most)) => format!("{name}, {least} to {most}"),
        (Some(least), None) => format!("{name}, at least {least}"),
        _ => name.to_owned(),
    }
}

/// The type of a key, in words.
fn kind(schema: &Value) -> String {
    if let Some(forms) = schema.get("anyOf").and_then(Value::as_array) {
        return forms.iter().map(kind).collect::<Vec<_>>().join("; ");
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let words = values.iter().filter_map(Value::as_str).map(|word| format!("`{word}`"));
        return words.collect::<Vec<_>>().join(", ");
    }
    match schema["type"].as_str().unwrap() {
        "array" => format!("list: {}", kind(&schema["items"])),
        "boolean" => "`true`, `false`".to_owned(),
        "string" => schema.get("pattern").map_or("text", pattern).to_owned(),
        number @ ("integer" | "number") => range(number, schema),
        other => other.to_owned(),
    }
}

fn pattern(pattern: &Value) -> &'static str {
    let known = PATTERNS.iter().find(|(known, _)| pattern == known);
    known.unwrap_or_else(|| panic!("PATTERNS has no word for {pattern}")).1
}

/// What is used where nobody says anything; nothing where the meaning says it.
fn default(schema: &Value) -> String {
    match schema.get("default") {
        None => String::new(),
        Some(Value::String(text)) => format!("`{text}`"),
        Some(Value::Array(list)) => {
            let words = list.iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>();
            format!("`[{}]`", words.join(", "))
        }
        Some(other) => format!("`{other}`"),
    }
}

/// The key that a flag wins over.
fn key_of(flag: &str) -> String {
    if let Some((_, key)) = ELSEWHERE.iter().find(|(known, _)| *known == flag) {
        return (*key).to_owned();
    }
    let mut words = flag.split('-');
    let first = words.next().unwrap().to_owned();
    words.fold(first, |key, word| key + &word[..1].to_uppercase() + &word[1..])
}

/// The flags of `run` that say what the file can say as well, by their keys.
fn flags() -> BTreeMap<String, Arg> {
    let mut command = crate::cli::command();
    command.build();
    let run = command.find_subcommand("run").unwrap();
    let told = run.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
    // The file itself, the way to a hub, which every command has, and what stands for variables alone.
    let of_a_key = told.filter(|(flag, arg)| {
        !["config", "help", "version"].contains(flag) && !flag.starts_with("server") && !arg.is_hide_set()
    });
    of_a_key.map(|(flag, arg)| (key_of(flag), arg.clone())).collect()
}

#[test]
fn the_page_of_settings_is_what_the_schema_and_the_command_line_say() {
    let schema: Value = serde_json::from_str(schema::SETTINGS).unwrap();
    let (mut found, mut flags) = (Vec::new(), flags());
    keys(&schema, "", &mut found);
    let mut text =
        "\n| key | type | default | flag | variable | what |\n|---|---|---|---|---|---|\n".to_owned();
    for (path, field) in found {
        let (flag, variable) = flags.remove(&path).map_or_else(Default::default, |arg| {
            let variable = arg.get_env().unwrap().display().to_string();
            (format!("`{}`", super::written(&arg).replace('|', "\\|")), format!("`{variable}`"))
        });
        let what = super::cell(field["description"].as_str().unwrap());
        let (kind, default) = (kind(field).replace('|', "\\|"), default(field));
        writeln!(text, "| `{path}` | {kind} | {default} | {flag} | {variable} | {what} |").unwrap();
    }
    assert!(flags.is_empty(), "the settings file has no key for these flags: {:?}", flags.keys());
    text.push('\n');
    super::held("settings.md", &text);
}

/// Adds the schema's defaults where an object does not say anything; of what is not there nothing is said.
fn fill(object: &mut Map<String, Value>, schema: &Value) {
    for (name, field) in fields(schema).into_iter().flatten() {
        if let Some(default) = field.get("default") {
            object.entry(name).or_insert_with(|| default.clone());
        }
        if let Some(inside) = object.get_mut(name).and_then(Value::as_object_mut) {
            fill(inside, field);
        }
    }
}

/// All that a process would run on, by a file with this text.
fn merged(text: &str) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let flags = RunArgs { config: Some(file.path().to_owned()), ..RunArgs::default() };
    format!("{:#?}", Settings::merge(flags, None).unwrap_or_else(|why| panic!("{text}: {why}")))
}

#[test]
fn the_defaults_of_the_schema_are_those_that_are_used() {
    let schema: Value = serde_json::from_str(schema::SETTINGS).unwrap();
    // As many objects as there are, since a default in an object counts only where the object is.
    let edge = json!({
        "gateway": "0.0.0.0:7480", "trust": "any", "accessLog": {}, "timeouts": {}, "minRates": {}, "correlation": {}, "carriers": {},
        "tls": {"certificates": [{"certificate": "a", "key": "b"}], "clientCa": "c"}, "authorizer": {"url": "http://a"},
        "tokens": {"keys": ["a"], "audience": "b"}, "upstreamTls": [{"hosts": ["a"]}],
    });
    let loopback = json!({"timeouts": {"lameDuck": "0s"}, "tokens": {}});
    // Who serves its store to others has a gateway only where it says so.
    let mut hub = loopback.clone();
    hub["gateway"] = "127.0.0.1:7480".into();
    hub["hub"] = json!({"address": "127.0.0.1:7484"});
    for told in [edge, loopback, hub] {
        let mut all = told.clone();
        fill(all.as_object_mut().unwrap(), &schema);
        assert_ne!(all, told, "nothing was filled in");
        assert_eq!(merged(&all.to_string()), merged(&told.to_string()), "{all:#}");
    }
}

#[test]
fn the_settings_file_in_the_page_of_operating_says_what_is_so_without_it() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let page = std::fs::read_to_string(page).unwrap();
    let after = page.split_once("A settings file with every key that has a default").unwrap().1;
    let text = after.split_once("```yaml\n").unwrap().1.split_once("```").unwrap().0;
    // What it says of a process that others can reach.
    let told = text.replace("gateway: 127.0.0.1:7480", "gateway: 0.0.0.0:7480\ntrust: any");
    assert_ne!(told, text);
    assert_eq!(merged(&told), merged("gateway: 0.0.0.0:7480\ntrust: any"));
}
