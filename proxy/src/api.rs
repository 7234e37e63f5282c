//! The API: environments, what is attached to them, status and decisions, over HTTP with JSON. The same at the admin
//! listener and at a hub; who may do what is theirs. `api/openapi.json` describes it, with what only the admin listener has,
//! and a test holds it equal to both.

mod decisions;
mod description;
mod environments;
mod health;
mod questions;

use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use overlane_config::blueprint::Blueprint;
use serde_json::json;

use crate::admin::{Admin, problem, require_json};
use crate::hub::fleet::Fleet;
use crate::hub::tokens::Right;
use crate::status::Status;
use crate::store::shared::Revision;

pub(crate) use decisions::{Allowance, aside};
pub(crate) use health::Health;

/// What the API is about.
#[derive(Clone)]
pub(crate) struct Api {
    /// The process.
    pub(crate) admin: Admin,
    /// Who reports to it, where it is a hub.
    pub(crate) fleet: Option<Fleet>,
    /// What may be done without a token.
    pub(crate) open: Right,
}

/// What can be asked for of whatever answers: methods and paths.
pub(crate) type Operations<A> = Vec<(&'static str, &'static str, MethodRouter<A>)>;

/// What changes nothing.
fn reading() -> Operations<Api> {
    vec![
        ("get", "/openapi.json", get(openapi)),
        ("get", "/api/v1/status", get(status)),
        ("get", "/api/v1/decisions", get(decisions::list)),
        ("get", "/api/v1/tap", get(decisions::tap)),
        ("get", "/api/v1/why/{id}", get(decisions::why)),
        ("get", "/api/v1/stats", get(decisions::stats)),
        ("get", "/api/v1/reloads", get(reloads)),
        ("get", "/api/v1/baselines", get(environments::list_baselines)),
        ("get", "/api/v1/baselines/{id}", get(environments::get_baseline)),
        ("get", "/api/v1/baselines/{id}/health", get(health::health)),
        ("get", "/api/v1/overlays", get(environments::list_overlays)),
        ("get", "/api/v1/overlays/{id}", get(environments::get_overlay)),
        ("get", "/api/v1/overlays/{id}/health", get(health::health)),
        ("get", "/api/v1/overlays/{id}/lineage", get(environments::lineage)),
        ("get", "/api/v1/overlays/{id}/attachments", get(environments::attachments)),
        ("get", "/api/v1/overlays/{id}/shares", get(environments::shares)),
    ]
}

/// What changes nothing and has a body.
fn asking() -> Operations<Api> {
    vec![
        ("post", "/api/v1/validate", post(questions::validate)),
        ("post", "/api/v1/explain", post(questions::explain_request)),
        ("post", "/api/v1/decide", post(questions::decide_message)),
    ]
}

/// What changes the store.
fn writing() -> Operations<Api> {
    const ATTACHMENT: &str = "/api/v1/overlays/{id}/attachments/{service}";
    vec![
        ("put", "/api/v1/baselines/{id}", put(environments::put_baseline)),
        ("delete", "/api/v1/baselines/{id}", delete(environments::delete_baseline)),
        ("put", "/api/v1/overlays/{id}", put(environments::put_overlay)),
        ("delete", "/api/v1/overlays/{id}", delete(environments::delete_overlay)),
        ("put", ATTACHMENT, put(environments::attach)),
        ("delete", ATTACHMENT, delete(environments::detach)),
        ("post", "/api/v1/overlays/{id}/shares", post(environments::share)),
        ("delete", "/api/v1/overlays/{id}/shares/{share}", delete(environments::unshare)),
    ]
}

/// What has a body has it in JSON; another method is none, whatever it sends.
pub(crate) fn router<A: Clone + Send + Sync + 'static>(operations: Operations<A>) -> Router<A> {
    let all = operations.into_iter();
    all.fold(Router::new(), |router, (_, path, method)| {
        router.route(path, method.route_layer(from_fn(require_json)))
    })
}

impl Api {
    /// What changes nothing; what is asked with a body and changes nothing; and what changes the store.
    pub(crate) fn routers(&self) -> [Router; 3] {
        [reading(), asking(), writing()].map(|operations| router(operations).with_state(self.clone()))
    }

    /// The state of an environment, to be compared for equality.
    fn revision_of(&self, blueprint: &Blueprint) -> Option<Revision> {
        self.admin.behind.as_ref()?.revision_of(&blueprint.source)
    }
}

async fn openapi(State(api): State<Api>) -> Response {
    match description::describe(api.open, decisions::most(&api), api.fleet.is_some()) {
        Ok(described) => axum::Json(described).into_response(),
        Err(why) => problem(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
    }
}

/// What this process knows of proxies: as a hub all who report to it, else itself.
async fn status(State(api): State<Api>) -> Response {
    let Status { revision, mut instances } = api.admin.alone().await;
    if let Some(fleet) = &api.fleet {
        let reported = fleet.instances(Instant::now()).into_iter();
        instances.extend(reported.map(|instance| instance.seen(revision.as_ref())));
    }
    axum::Json(Status { revision, instances }).into_response()
}

/// What changed lately in what this process has in force, and what was wrong with it.
async fn reloads(State(api): State<Api>) -> Response {
    axum::Json(json!({ "items": api.admin.control.reloads() })).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::admin;

    #[test]
    fn the_description_has_the_operations_that_there_are_and_no_others() {
        let described: Value = serde_json::from_str(description::OPENAPI).expect("JSON");
        assert_eq!(described["openapi"], "3.1.0");
        let mut operations = BTreeSet::new();
        for (path, item) in described["paths"].as_object().expect("paths") {
            let other = ["parameters", "servers"];
            let methods =
                item.as_object().expect("operations").keys().filter(|key| !other.contains(&key.as_str()));
            operations.extend(methods.map(|method| (method.clone(), path.clone())));
        }
        fn named<A>(operations: Operations<A>) -> impl Iterator<Item = (String, String)> {
            operations.into_iter().map(|(method, path, _)| (method.to_owned(), path.to_owned()))
        }
        let of_both = [reading(), asking(), writing()].into_iter().flat_map(named);
        let own: BTreeSet<_> = [admin::looking(), admin::changing()].into_iter().flat_map(named).collect();
        assert_eq!(operations, of_both.chain(own.clone()).collect());
        // What it says of the admin listener alone is what a hub does not have.
        let only_here =
            operations.into_iter().filter(|(_, path)| described["paths"][path]["servers"].is_array());
        assert_eq!(only_here.collect::<BTreeSet<_>>(), own);
    }
}
