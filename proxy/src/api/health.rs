//! Whether what an environment owns can be reached, as far as this process knows.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use overlane_config::name::EnvironmentId;
use overlane_config::table::Environment;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::Api;
use crate::admin::problem;
use crate::store::shared::Revision;
use crate::upstream::Upstream;

/// How long names may take to be resolved.
const RESOLVED: Duration = Duration::from_secs(3);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_millis(10);

/// How an environment fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Health {
    /// The state of the environment that is routed, where it is.
    pub(crate) revision: Option<Revision>,
    /// The services that it owns.
    pub(crate) services: Vec<ServiceHealth>,
}

/// How a service fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceHealth {
    /// Its name.
    pub(crate) service: String,
    /// Why it has no address; nothing where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

pub(super) async fn health(State(api): State<Api>, Path(name): Path<String>) -> Response {
    let id: EnvironmentId = match name.parse() {
        Ok(id) => id,
        Err(why) => return problem(StatusCode::BAD_REQUEST, &why.to_string()),
    };
    let snapshot = api.admin.control.published().load_full();
    let routes: Vec<_> = match snapshot.table.environment(id.as_str()) {
        None => return problem(StatusCode::NOT_FOUND, &format!("`{id}` is not routed here")),
        Some(Environment::Refused(diagnostics)) => {
            let why: Vec<_> =
                diagnostics.iter().map(overlane_config::diagnostic::Diagnostic::short).collect();
            return problem(StatusCode::CONFLICT, &why.join("\n"));
        }
        Some(Environment::Baseline(baseline)) => {
            baseline.routes().map(|route| (route.service.to_string(), route.upstream.clone())).collect()
        }
        Some(Environment::Overlay(overlay)) => {
            let owned = overlay.owned().iter().map(|owned| &owned.route);
            owned.map(|route| (route.service.to_string(), route.upstream.clone())).collect()
        }
    };
    let resolved = routes
        .into_iter()
        .map(async |(service, upstream)| ServiceHealth { service, problem: problem_of(&upstream).await });
    let services = futures_util::future::join_all(resolved).await;
    let claim = api.admin.control.lineages(|lineages| lineages.claims(&id).next().cloned());
    let revision = claim.and_then(|claim| api.revision_of(&claim));
    axum::Json(Health { revision, services }).into_response()
}

/// Why a service has no address.
async fn problem_of(upstream: &Arc<Upstream>) -> Option<String> {
    if upstream.urls().is_empty() {
        return Some("pending: it has no address yet".to_owned());
    }
    // Names of overlays are resolved when somebody asks.
    let _ = upstream.pick();
    let known = async {
        loop {
            match upstream.endpoints() {
                Some(endpoints) => return endpoints,
                None => sleep(LOOK).await,
            }
        }
    };
    match timeout(RESOLVED, known).await {
        Ok(endpoints) if !endpoints.list.is_empty() => None,
        Ok(endpoints) => {
            Some(endpoints.problem.clone().unwrap_or_else(|| "its names have no address".to_owned()))
        }
        Err(_) => Some("its names are not resolved yet".to_owned()),
    }
}
