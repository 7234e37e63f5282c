//! The description of the API as a process serves it: `openapi.json`, the schema of blueprints, and what is so at this process.

use serde_json::{Value, json};

use crate::cli::schema::BLUEPRINT;
use crate::hub::tokens::Right;

/// The description, without what differs from process to process.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// The description where so much may be done without a token, and at `most` so many decisions are told at once; of a hub's
/// listener, or of the admin listener.
pub(super) fn describe(open: Right, most: usize, hub: bool) -> serde_json::Result<Value> {
    let mut document: Value = serde_json::from_str(OPENAPI)?;
    if let Some(paths) = document["paths"].as_object_mut().filter(|_| hub) {
        // They say who has them.
        paths.retain(|_, item| item.get("servers").is_none());
    }
    embed_blueprints(&mut document)?;
    document["components"]["parameters"]["limit"]["schema"]["maximum"] = json!(most);
    document["security"] = security(open >= Right::Read);
    let paths = document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    let operations = paths.filter_map(Value::as_object_mut).flat_map(|item| item.values_mut());
    // What writes says itself what it wants; what reads wants what the document says.
    for own in operations.filter_map(|operation| operation.get_mut("security")) {
        *own = security(open >= Right::Write);
    }
    Ok(document)
}

/// A token, which may be left out where that is `optional`.
fn security(optional: bool) -> Value {
    let token = json!({ "token": [] });
    if optional { json!([token, {}]) } else { json!([token]) }
}

/// Puts the schema of blueprints, which has references of its own, among the others.
fn embed_blueprints(document: &mut Value) -> serde_json::Result<()> {
    let text = BLUEPRINT.replace("#/definitions/", "#/components/schemas/Blueprint.");
    let Value::Object(mut whole) = serde_json::from_str(&text)? else { return Ok(()) };
    whole.remove("$schema");
    let parts = whole.remove("definitions");
    let schemas = &mut document["components"]["schemas"];
    for (name, part) in parts.as_ref().and_then(Value::as_object).into_iter().flatten() {
        schemas[format!("Blueprint.{name}")] = part.clone();
    }
    schemas["Blueprint"] = Value::Object(whole);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_description_refers_to_is_there() {
        let described = describe(Right::None, 10, false).expect("JSON");
        let mut references = vec![&described];
        let mut seen = 0;
        while let Some(value) = references.pop() {
            if let Some(to) = value.get("$ref").and_then(Value::as_str) {
                assert!(described.pointer(to.trim_start_matches('#')).is_some(), "{to}");
                seen += 1;
            }
            match value {
                Value::Object(fields) => references.extend(fields.values()),
                Value::Array(items) => references.extend(items),
                _ => {}
            }
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn a_hub_describes_nothing_that_only_the_admin_listener_has() {
        let has = |hub, path| describe(Right::None, 10, hub).expect("JSON")["paths"].get(path).is_some();
        for path in ["/api/v1/reload", "/api/v1/watch", "/logging", "/config_dump"] {
            assert!(has(false, path) && !has(true, path), "{path}");
        }
        assert!(has(true, "/api/v1/overlays"));
    }

    #[test]
    fn the_description_says_what_needs_a_token_here_and_how_much_is_told_at_once() {
        let (needed, optional) = (json!([{ "token": [] }]), json!([{ "token": [] }, {}]));
        for (open, reading, writing) in [
            (Right::None, &needed, &needed),
            (Right::Read, &optional, &needed),
            (Right::Write, &optional, &optional),
        ] {
            let described = describe(open, 7, true).expect("JSON");
            assert_eq!(described["security"], *reading, "{open:?}");
            let overlay = &described["paths"]["/api/v1/overlays/{id}"];
            assert_eq!(overlay["put"]["security"], *writing, "{open:?}");
            assert_eq!(overlay["delete"]["security"], *writing, "{open:?}");
            assert!(overlay["get"].get("security").is_none(), "{open:?}");
            assert_eq!(described["components"]["parameters"]["limit"]["schema"]["maximum"], 7);
        }
    }
}
