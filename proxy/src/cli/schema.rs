//! `overlane schema`: JSON Schemas, by which editors complete and check what people write.
//!
//! They are written by hand in `docs/schema`, with a sentence for each field. That they know the same fields as the readers is
//! held by the tests below; that they refuse nothing that the readers take, by `docs/schema/check.py`.

use clap::{Args, ValueEnum};

use super::output::{CliError, Output};

/// Of blueprints, bare and under Kubernetes' four fields, and of attachments (JSON Schema, draft 7).
pub const BLUEPRINT: &str = include_str!("../../../docs/schema/blueprint.json");
/// Of the settings file (JSON Schema, draft 7).
pub const SETTINGS: &str = include_str!("../../../docs/schema/settings.json");

/// `overlane schema`.
#[derive(Debug, Args)]
#[command(
    after_help = "For completion in an editor with yaml-language-server:\n\n  overlane schema > overlane.schema.json\n\nand as the first line of a blueprint beside it:\n\n  # yaml-language-server: $schema=overlane.schema.json"
)]
pub struct Schema {
    /// Of what
    #[arg(value_enum, default_value_t)]
    of: Of,
}

/// What there are schemas of.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Of {
    /// Baselines, overlays and attachments
    #[default]
    Blueprint,
    /// The settings file of `overlane run`
    Settings,
}

/// Prints a schema.
///
/// # Errors
/// The reader went away.
pub fn run(schema: &Schema, out: &mut Output<'_>) -> Result<(), CliError> {
    let text = match schema.of {
        Of::Blueprint => BLUEPRINT,
        Of::Settings => SETTINGS,
    };
    out.result().write_all(text.as_bytes()).map_err(CliError::from)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use overlane_config::blueprint::KNOWN_FIELDS;
    use serde_json::Value;

    use super::*;
    use crate::settings::complaint;

    fn schema(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    fn properties(object: &Value) -> BTreeSet<&str> {
        assert_eq!(object["additionalProperties"], false, "{object:#}");
        object["properties"].as_object().expect("properties").keys().map(String::as_str).collect()
    }

    #[test]
    fn the_schema_of_blueprints_knows_the_fields_that_the_reader_knows() {
        let schema = schema(BLUEPRINT);
        for (place, fields) in KNOWN_FIELDS {
            let fields: BTreeSet<_> = fields.iter().copied().collect();
            assert_eq!(properties(&schema["definitions"][place]), fields, "{place}");
        }
        let known: BTreeSet<_> = KNOWN_FIELDS.iter().map(|(place, _)| *place).collect();
        let definitions = schema["definitions"].as_object().expect("definitions");
        let closed = definitions
            .iter()
            .filter(|(_, one)| one.get("additionalProperties") == Some(&Value::Bool(false)));
        assert_eq!(closed.map(|(place, _)| place.as_str()).collect::<BTreeSet<_>>(), known);
    }

    /// The settings with nothing but a field that nobody knows, at a path.
    fn unknown_at(path: &[&str]) -> String {
        let field = "{\"no-such-field\": 1}".to_owned();
        path.iter().rev().fold(field, |inside, part| match part.strip_suffix("[]") {
            Some(list) => format!("{{\"{list}\": [{inside}]}}"),
            None => format!("{{\"{part}\": {inside}}}"),
        })
    }

    /// The fields that the reader of settings names where it finds one that it does not know.
    fn read_at(path: &[&str]) -> BTreeSet<String> {
        let complaint = complaint(&unknown_at(path));
        let expected = complaint.split_once("expected").unwrap_or_else(|| panic!("{path:?}: {complaint}")).1;
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// Every object of the settings' schema that lists its fields, by its path.
    fn objects<'s>(schema: &'s Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, &'s Value)>) {
        let Some(fields) = schema.get("properties").and_then(Value::as_object) else { return };
        found.push((path.clone(), schema));
        for (name, field) in fields {
            let of = field
                .get("anyOf")
                .and_then(|any| any.as_array()?.iter().find(|one| one.get("properties").is_some()));
            let (name, of) = match field.get("items") {
                Some(items) => (format!("{name}[]"), items),
                None => (name.clone(), of.unwrap_or(field)),
            };
            path.push(name);
            objects(of, path, found);
            path.pop();
        }
    }

    #[test]
    fn the_schema_of_settings_knows_the_fields_that_the_reader_knows() {
        let schema = schema(SETTINGS);
        let mut found = Vec::new();
        objects(&schema, &mut Vec::new(), &mut found);
        assert!(found.len() > 8, "{}", found.len());
        for (path, object) in found {
            let path: Vec<_> = path.iter().map(String::as_str).collect();
            let known: BTreeSet<_> = properties(object).into_iter().map(str::to_owned).collect();
            assert_eq!(known, read_at(&path), "{path:?}");
        }
    }

    #[test]
    fn every_field_of_a_schema_says_what_it_is() {
        fn walk(schema: &Value, path: &str, silent: &mut Vec<String>) {
            for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                let described = ["description", "$ref", "enum", "const", "items"]
                    .iter()
                    .any(|key| field.get(key).is_some());
                if !described && field.is_object() {
                    silent.push(format!("{path}.{name}"));
                }
                walk(field, &format!("{path}.{name}"), silent);
            }
        }
        for text in [BLUEPRINT, SETTINGS] {
            let schema = schema(text);
            let mut silent = Vec::new();
            walk(&schema, "", &mut silent);
            for (name, definition) in
                schema.get("definitions").and_then(Value::as_object).into_iter().flatten()
            {
                if definition.get("additionalProperties").is_some() {
                    walk(definition, name, &mut silent);
                }
            }
            assert!(silent.is_empty(), "{silent:?}");
        }
    }
}
