//! The custom resource definitions, and values as their schemas have them. `deploy/kubernetes/crds/` and the chart hold
//! what [`definition`] makes; a test keeps them equal.

use overlane_config::blueprint::{
    API_VERSION, ATTACHED, ATTACHMENT, ROOT, ROUTING, SERVICE, SHARE, Value as Written,
};
use serde_json::{Map, Value, json};

use super::object::Kind;

/// Fields of `spec`, `routing` and services that are no text. What is in none of these lists is kept as it is.
const BOOLEANS: &[&str] = &["propagateHeader", "expose"];
const INTEGERS: &[&str] = &["maxRequests"];
const LISTS_OF_TEXTS: &[&str] = &["endpoints", "hosts"];
/// Fields of a service that routing acts on.
const TEXTS_OF_A_SERVICE: &[&str] = &["name", "url", "path", "image"];

fn text() -> Value {
    json!({ "type": "string" })
}

/// Whatever is there is kept: it is of provisioning.
fn kept() -> Value {
    json!({ "x-kubernetes-preserve-unknown-fields": true })
}

fn fields(names: &[&str], of: impl Fn(&str) -> Value) -> Value {
    names.iter().map(|name| ((*name).to_owned(), of(name))).collect::<Map<_, _>>().into()
}

fn routing(kind: Kind) -> Value {
    let mode = kind.name().to_lowercase();
    let field = |name: &str| match name {
        "mode" => json!({ "type": "string", "enum": [mode] }),
        _ if BOOLEANS.contains(&name) => json!({ "type": "boolean" }),
        _ => text(),
    };
    let mut routing = json!({ "type": "object", "properties": fields(ROUTING, field) });
    if kind == Kind::Overlay {
        routing["required"] = json!(["baselineId"]);
    }
    routing
}

fn service() -> Value {
    let field = |name: &str| match name {
        _ if TEXTS_OF_A_SERVICE.contains(&name) => text(),
        _ if BOOLEANS.contains(&name) => json!({ "type": "boolean" }),
        _ if INTEGERS.contains(&name) => json!({ "type": "integer", "minimum": 1 }),
        _ if LISTS_OF_TEXTS.contains(&name) => json!({ "type": "array", "items": text() }),
        _ => kept(),
    };
    json!({ "type": "object", "required": ["name"], "properties": fields(SERVICE, field) })
}

/// Of `spec`: the blueprint.
pub(super) fn spec(kind: Kind) -> Value {
    let field = |name: &str| match name {
        "name" => text(),
        "routing" => routing(kind),
        "services" => json!({ "type": "array", "items": service() }),
        _ => kept(),
    };
    let mut spec = json!({ "type": "object", "properties": fields(ROOT, field) });
    if kind == Kind::Overlay {
        spec["required"] = json!(["routing"]);
    }
    spec
}

/// Of `attached`: what was given to the environment beside its blueprint.
pub(super) fn attached() -> Value {
    let texts = |names: &[&str]| json!({ "type": "array", "items": { "type": "object", "properties": fields(names, |_| text()) } });
    let field = |name: &str| match name {
        "services" => texts(ATTACHED),
        "shares" => texts(SHARE),
        _ => text(),
    };
    json!({ "type": "object", "properties": fields(ATTACHMENT, field) })
}

/// Of `status`: whether the environment is in force, and why it is not.
fn status() -> Value {
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": text(),
            "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
            "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
            "lastTransitionTime": { "type": "string", "format": "date-time" },
            "reason": text(),
            "message": text(),
        },
    });
    json!({
        "type": "object",
        "properties": {
            "conditions": {
                "type": "array",
                "items": condition,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        },
    })
}

/// What no other field says: an object is called as its environment is.
fn rules(kind: Kind) -> Value {
    let id = match kind {
        Kind::Baseline => "baselineId",
        Kind::Overlay => "overlayId",
    };
    json!([
        {
            "rule": "size(self.metadata.name) <= 63 && !self.metadata.name.contains('.') && !self.metadata.name.contains('--')",
            "message": "metadata.name must be an id: lower-case letters, digits and single dashes, at most 63 bytes",
        },
        {
            "rule": format!("!has(self.spec.routing) || !has(self.spec.routing.{id}) || self.spec.routing.{id} == self.metadata.name"),
            "message": format!("spec.routing.{id} must be metadata.name, or be left out"),
        },
    ])
}

fn columns(kind: Kind) -> Value {
    let column = |name: &str, kind: &str, path: &str, priority: u8| json!({ "name": name, "type": kind, "jsonPath": path, "priority": priority });
    let parent = column("Parent", "string", ".spec.routing.baselineId", 0);
    let services = column("Services", "string", ".spec.services[*].name", 1);
    let expires = column("Expires", "string", ".spec.routing.expiresAt", 0);
    let accepted = column("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status", 0);
    let reason = column("Reason", "string", ".status.conditions[?(@.type==\"Accepted\")].reason", 1);
    let age = column("Age", "date", ".metadata.creationTimestamp", 0);
    match kind {
        Kind::Baseline => json!([accepted, age, services, reason]),
        Kind::Overlay => json!([parent, accepted, expires, age, services, reason]),
    }
}

/// The definition of a kind, as it is applied to a cluster.
#[must_use]
pub fn definition(kind: Kind) -> Value {
    let (group, version) = API_VERSION.split_once('/').unwrap_or((API_VERSION, ""));
    let short = match kind {
        Kind::Baseline => "bl",
        Kind::Overlay => "ov",
    };
    let schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": text(),
            "kind": text(),
            "metadata": { "type": "object" },
            "spec": spec(kind),
            "attached": attached(),
            "status": status(),
        },
        "x-kubernetes-validations": rules(kind),
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{group}", kind.plural()) },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name(),
                "listKind": format!("{}List", kind.name()),
                "plural": kind.plural(),
                "singular": kind.name().to_lowercase(),
                "shortNames": [short],
                "categories": ["overlane"],
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns(kind),
                "schema": { "openAPIV3Schema": schema },
            }],
        },
    })
}

/// A value as a schema has it: a text stays a text, also where it looks like a number. Nothing, where it is null.
pub(super) fn json(written: &Written, schema: &Value) -> Option<Value> {
    match written {
        Written::Scalar { text, plain } => scalar(text, *plain, schema["type"].as_str()),
        Written::List(items) => {
            let item = |item: &Written| json(item, &schema["items"]).unwrap_or_default();
            Some(items.iter().map(item).collect::<Vec<_>>().into())
        }
        Written::Mapping(entries) => {
            let field = |(name, value): &(String, Written)| {
                Some((name.clone(), json(value, &schema["properties"][name.as_str()])?))
            };
            Some(entries.iter().filter_map(field).collect::<Map<_, _>>().into())
        }
    }
}

fn scalar(text: &str, plain: bool, kind: Option<&str>) -> Option<Value> {
    match (text, kind) {
        ("" | "~" | "null" | "Null" | "NULL", _) if plain => None,
        (_, Some("string")) => Some(text.into()),
        (_, Some("integer")) => Some(text.parse::<u64>().map_or_else(|_| text.into(), Value::from)),
        ("true", _) if plain => Some(true.into()),
        ("false", _) if plain => Some(false.into()),
        // A number that reads back as it was written; `1.10` is a version.
        _ if plain => Some(match text.parse::<i64>() {
            Ok(number) if number.to_string() == text => number.into(),
            _ => text.into(),
        }),
        _ => Some(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use overlane_config::blueprint::values;
    use overlane_config::diagnostic::Source;

    use super::*;

    fn files(kind: Kind) -> [PathBuf; 2] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        ["deploy/kubernetes/crds", "deploy/helm/overlane/crds"]
            .map(|folder| root.join(folder).join(format!("{}.yaml", kind.plural())))
    }

    #[test]
    fn the_definitions_to_apply_are_those_of_the_code() {
        for kind in Kind::ALL {
            let text = serde_yaml::to_string(&definition(kind)).expect("yaml");
            for file in files(kind) {
                if std::env::var_os("UPDATE_CRDS").is_some() {
                    fs::create_dir_all(file.parent().expect("folder")).expect("folder");
                    fs::write(&file, &text).expect("write");
                }
                let there = fs::read_to_string(&file).expect("UPDATE_CRDS=1 writes it");
                assert!(there == text, "{} is not what UPDATE_CRDS=1 writes", file.display());
            }
        }
    }

    /// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>
    fn structural(at: &str, schema: &Value) {
        let free = schema["x-kubernetes-preserve-unknown-fields"] == true;
        assert!(free || schema["type"].is_string(), "{at} has no type");
        for (keyword, kind) in [("properties", "object"), ("items", "array"), ("required", "object")] {
            assert!(
                schema.get(keyword).is_none() || schema["type"] == kind,
                "{at} has {keyword} and is no {kind}"
            );
        }
        for refused in
            ["$ref", "definitions", "oneOf", "anyOf", "allOf", "not", "uniqueItems", "additionalProperties"]
        {
            assert!(schema.get(refused).is_none(), "{at} has {refused}");
        }
        let properties = schema["properties"].as_object().into_iter().flatten();
        properties.for_each(|(name, schema)| structural(&format!("{at}.{name}"), schema));
        if let Some(items) = schema.get("items") {
            structural(&format!("{at}[]"), items);
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().expect("name");
            assert!(schema["properties"].get(name).is_some(), "{at} requires {name}, which it has not");
        }
    }

    #[test]
    fn a_definition_is_structural_and_has_every_field_of_a_blueprint() {
        for kind in Kind::ALL {
            let definition = definition(kind);
            let version = &definition["spec"]["versions"][0];
            let schema = &version["schema"]["openAPIV3Schema"];
            structural(kind.name(), schema);
            assert!(schema["properties"]["metadata"].get("properties").is_none());
            let spec = &schema["properties"]["spec"]["properties"];
            assert!(ROOT.iter().all(|field| spec.get(field).is_some()));
            let service = &spec["services"]["items"]["properties"];
            assert!(SERVICE.iter().all(|field| service.get(field).is_some()));
        }
    }

    #[test]
    fn a_text_stays_what_was_written_and_provisioning_stays_what_it_was() {
        let text = "name: 12\nrouting: {mode: overlay, baselineId: 7, ttl: 90, propagateHeader: false, onUnknown: ~}\nservices:\n- {name: web, image: 1.10, expose: true, maxRequests: 5, hosts: [1, a], ports: [80], env: {A: 1.10, B: true, C: null}}\n";
        let source = Arc::new(Source::new("a.yaml".into(), text.to_owned(), None));
        let written = values(&source).expect("read");
        let expected = serde_json::json!({
            "name": "12",
            "routing": { "mode": "overlay", "baselineId": "7", "ttl": "90", "propagateHeader": false },
            "services": [{
                "name": "web", "image": "1.10", "expose": true, "maxRequests": 5, "hosts": ["1", "a"],
                "ports": [80], "env": { "A": "1.10", "B": true },
            }],
        });
        assert_eq!(json(&written[0], &spec(Kind::Overlay)), Some(expected));
    }
}
