//! What went wrong, as RFC 9457 has it.

use axum::body::to_bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use overlane_config::diagnostic::Diagnostic;
use serde_json::{Value, json};

use crate::cli::output::CliError;
use crate::cli::validate;
use crate::store::open::WriteError;

/// The type of what is answered.
const PROBLEM: &str = "application/problem+json";

/// Of what others say about a mistake, so many bytes are read.
const SAID: usize = 16 * 1024;

/// An error.
pub(crate) fn problem(status: StatusCode, detail: &str) -> Response {
    with(status, detail, None)
}

/// Mistakes of requests that the router or what reads their parts found, in the same words as all others.
pub(crate) async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let told = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM);
    if !status.is_client_error() || told {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let said = to_bytes(body, SAID).await.unwrap_or_default();
    let detail = match status {
        // The router says which when this is done.
        StatusCode::METHOD_NOT_ALLOWED => {
            "this is asked for with another method: `Allow` says which".to_owned()
        }
        _ => String::from_utf8_lossy(&said).trim().to_owned(),
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    let problem = problem(status, &detail);
    parts.headers.extend(problem.headers().clone());
    Response::from_parts(parts, problem.into_body())
}

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
    (status, [(header::CONTENT_TYPE, PROBLEM)], format!("{body}\n")).into_response()
}
