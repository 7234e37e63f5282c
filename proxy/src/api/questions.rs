//! What is asked with a body and changes nothing.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{Content, FileChange, Lineages};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use crate::admin::problem;
use crate::cli::validate::value;
use crate::clock;
use crate::explain::{Question, explain};
use crate::messages::{self, Message, Place, Verdict};
use crate::store::open::rules;

fn malformed(error: &serde_json::Error) -> Response {
    problem(StatusCode::BAD_REQUEST, &error.to_string())
}

pub(super) async fn explain_request(State(api): State<Api>, body: String) -> Response {
    let question: Question = match serde_json::from_str(&body) {
        Ok(question) => question,
        Err(error) => return malformed(&error),
    };
    let snapshot = api.admin.control.published().load_full();
    match explain(&snapshot.table, &api.admin.carriers, &question, clock::now()) {
        Ok(mut explanation) => {
            explanation.generation = snapshot.generation;
            axum::Json(explanation).into_response()
        }
        Err(why) => problem(StatusCode::BAD_REQUEST, &why),
    }
}

pub(super) async fn decide_message(State(api): State<Api>, body: String) -> Response {
    let message: Message = match serde_json::from_str(&body) {
        Ok(message) => message,
        Err(error) => return malformed(&error),
    };
    let snapshot = api.admin.control.published().load_full();
    let place = Place::of(api.admin.gates.iter().map(|gate| &gate.listener));
    match messages::decide(&snapshot.table, &api.admin.carriers, &place, &message, clock::now()) {
        Ok(verdict) => {
            if verdict.key.is_none() {
                api.admin.gates.iter().for_each(|gate| gate.correlation.messages_come());
            }
            axum::Json(Verdict { generation: snapshot.generation, ..verdict }).into_response()
        }
        Err(why) => problem(StatusCode::BAD_REQUEST, &why),
    }
}

/// Blueprints that are checked together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    files: Vec<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    text: String,
}

/// Every mistake of these files, as `overlane validate` shows them; the store is not looked at.
pub(super) async fn validate(State(_): State<Api>, body: String) -> Response {
    let Files { files } = match serde_json::from_str(&body) {
        Ok(files) => files,
        Err(error) => return malformed(&error),
    };
    let change = |File { path, text }: File| {
        let path: Arc<str> = path.into();
        let source = Arc::new(Source::new(path.clone(), text, None));
        FileChange { path, content: Content::Text(source) }
    };
    let changes = files.into_iter().map(change).collect();
    let check = move || Lineages::new(rules()).apply(changes);
    let applied = match tokio::task::spawn_blocking(check).await {
        Ok(applied) => applied,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    };
    let diagnostics: Vec<Value> = applied.diagnostics.iter().map(value).collect();
    let valid = !applied.diagnostics.iter().any(Diagnostic::is_error);
    axum::Json(json!({ "valid": valid, "diagnostics": diagnostics })).into_response()
}
