//! Why nothing was written, as RFC 9457 has it.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use overlane_config::diagnostic::Diagnostic;
use serde_json::{Value, json};

use crate::cli::output::CliError;
use crate::cli::validate;
use crate::store::open::WriteError;

/// The answer to whoever wanted to write: the words of the command line, and all mistakes of a blueprint each with
/// its place.
pub(crate) fn refused(error: WriteError) -> Response {
    let status = match &error {
        WriteError::NotFound(_) => StatusCode::NOT_FOUND,
        WriteError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        WriteError::NoName(_) | WriteError::OtherParent { .. } => StatusCode::BAD_REQUEST,
        WriteError::Changed(..) => StatusCode::PRECONDITION_FAILED,
        WriteError::NeverExpires(_)
        | WriteError::Exists(_)
        | WriteError::HasChildren(..)
        | WriteError::Shared(..)
        | WriteError::Conflict => StatusCode::CONFLICT,
        WriteError::Busy | WriteError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        WriteError::Unsure(_) => StatusCode::GATEWAY_TIMEOUT,
        WriteError::Io(..) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if let WriteError::Invalid(diagnostics) = &error {
        return invalid(diagnostics);
    }
    let CliError { message, hint, .. } = error.into();
    with(status, &message, hint.map(|hint| ("hint", hint.into())))
}

/// All mistakes of blueprints.
pub(crate) fn invalid(diagnostics: &[Diagnostic]) -> Response {
    let lines: Vec<_> = diagnostics.iter().map(Diagnostic::short).collect();
    let all = diagnostics.iter().map(validate::value).collect();
    with(StatusCode::UNPROCESSABLE_ENTITY, &lines.join("\n"), Some(("diagnostics", Value::Array(all))))
}

fn with(status: StatusCode, detail: &str, more: Option<(&str, Value)>) -> Response {
    let mut body = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": detail,
    });
    if let Some((name, value)) = more {
        body[name] = value;
    }
    (status, [(header::CONTENT_TYPE, "application/problem+json")], format!("{body}\n")).into_response()
}
