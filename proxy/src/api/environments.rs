//! Environments, and what is attached to them. What is read is what is in force here; what is written goes to the store,
//! and is in force here when it is answered.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use overlane_config::blueprint::{AttachedUrl, Blueprint, Document, Share, parse};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{Lineages, Standing};
use overlane_config::name::{EnvironmentId, InvalidLabel, ServiceName};
use overlane_config::url::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Api;
use crate::admin::{invalid, problem, refused};
use crate::cli::environment::ttl;
use crate::cli::preview::{SharedLink, links};
use crate::cli::show::{self, Kind};
use crate::clock;
use crate::store::behind::Behind;
use crate::store::open::{OpenStore, Outcome, Put, WriteError};
use crate::store::shared::Revision;

/// How long whoever wrote waits until it is in force here.
const IN_FORCE: Duration = Duration::from_secs(2);

/// A refusal, ready to be sent.
type Answer = Result<Response, Box<Response>>;

fn answer(answer: Answer) -> Response {
    answer.unwrap_or_else(|refusal| *refusal)
}

fn no(status: StatusCode, detail: &str) -> Box<Response> {
    Box::new(problem(status, detail))
}

fn label<T: FromStr<Err = InvalidLabel>>(text: &str) -> Result<T, Box<Response>> {
    text.parse().map_err(|error: InvalidLabel| no(StatusCode::BAD_REQUEST, &error.to_string()))
}

fn id(text: &str) -> Result<EnvironmentId, Box<Response>> {
    label(text)
}

fn service(text: &str) -> Result<ServiceName, Box<Response>> {
    label(text)
}

/// Which environments are listed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    baseline: Option<String>,
}

pub(super) async fn list_baselines(State(api): State<Api>) -> Response {
    list(&api, Kind::Baseline, None)
}

pub(super) async fn list_overlays(State(api): State<Api>, Query(filter): Query<Filter>) -> Response {
    list(&api, Kind::Overlay, filter.baseline.as_deref())
}

fn list(api: &Api, kind: Kind, baseline: Option<&str>) -> Response {
    let of = |standing: &Standing| {
        baseline.is_none_or(|baseline| {
            standing.resolved().is_some_and(|resolved| resolved.baseline.as_str() == baseline)
        })
    };
    // Environments of one file have one text, and so one revision.
    let mut revisions: HashMap<*const Source, Option<Revision>> = HashMap::new();
    let listed = api.admin.control.lineages(|lineages| {
        let found = lineages.standings().filter(|(id, standing)| {
            of(standing) && lineages.claims(id).next().is_some_and(|claim| Kind::of(claim) == kind)
        });
        let values = found.map(|(id, standing)| {
            let mut value = show::summary(id, standing, lineages);
            let revision = lineages.claims(id).next().and_then(|claim| {
                revisions.entry(Arc::as_ptr(&claim.source)).or_insert_with(|| api.revision_of(claim)).clone()
            });
            value["revision"] = json!(revision);
            value
        });
        values.collect::<Vec<_>>()
    });
    axum::Json(json!({ "items": listed, "revision": api.admin.control.revision() })).into_response()
}

/// The blueprint of an environment of a kind.
fn claim(api: &Api, id: &EnvironmentId, kind: Kind) -> Result<Arc<Blueprint>, Box<Response>> {
    let found = api.admin.control.lineages(|lineages| lineages.claims(id).next().cloned());
    found
        .filter(|claim| Kind::of(claim) == kind)
        .ok_or_else(|| no(StatusCode::NOT_FOUND, &format!("there is no {} `{id}`", kind.as_str())))
}

pub(super) async fn get_baseline(State(api): State<Api>, Path(id): Path<String>) -> Response {
    answer(get(&api, &id, Kind::Baseline))
}

pub(super) async fn get_overlay(State(api): State<Api>, Path(id): Path<String>) -> Response {
    answer(get(&api, &id, Kind::Overlay))
}

fn get(api: &Api, name: &str, kind: Kind) -> Answer {
    let claim = claim(api, &id(name)?, kind)?;
    let value =
        show::as_json(&claim).map_err(|error| no(StatusCode::INTERNAL_SERVER_ERROR, &error.message))?;
    Ok(tagged(StatusCode::OK, api.revision_of(&claim).as_ref(), &value))
}

/// An answer with the state that it is of.
fn tagged(status: StatusCode, revision: Option<&Revision>, value: &Value) -> Response {
    let mut response = (status, axum::Json(value)).into_response();
    let tag = revision.and_then(|revision| HeaderValue::from_str(&format!("\"{}\"", revision.as_str())).ok());
    if let Some(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

pub(super) async fn lineage(State(api): State<Api>, Path(name): Path<String>) -> Response {
    answer(lineage_of(&api, &name))
}

fn lineage_of(api: &Api, name: &str) -> Answer {
    let id = id(name)?;
    claim(api, &id, Kind::Overlay)?;
    let (lineage, links): (Vec<Value>, Vec<Value>) = api.admin.control.lineages(|lineages| {
        let services = |resolved: &overlane_config::lineage::Resolved| {
            let services = resolved.blueprint.services.iter();
            services.map(|service| service.name.value.to_string()).collect::<Vec<_>>()
        };
        let chain = show::lineage(&id, lineages);
        let lineage = chain
            .into_iter()
            .map(|(id, resolved)| json!({ "id": id.as_str(), "services": services(resolved) }))
            .collect();
        let links = links(&id, lineages, api.admin.gateway_port()).into_iter();
        (lineage, links.map(|(service, url)| json!({ "service": service.as_str(), "url": url })).collect())
    });
    Ok(axum::Json(json!({ "lineage": lineage, "links": links })).into_response())
}

pub(super) async fn attachments(State(api): State<Api>, Path(name): Path<String>) -> Response {
    answer(attached(&api, &name, |lineages, id| {
        let services = lineages.attachments(id).iter().flat_map(|record| &record.services);
        let value = |one: &AttachedUrl| json!({ "service": one.service.value.as_str(), "url": one.url.value.to_string(), "expiresAt": one.expires_at.map(|at| at.to_string()) });
        services.map(value).collect()
    }))
}

pub(super) async fn shares(State(api): State<Api>, Path(name): Path<String>) -> Response {
    answer(attached(&api, &name, |lineages, id| {
        let shares = lineages.attachments(id).iter().flat_map(|record| &record.shares);
        let value = |share: &Share| json!({ "id": &*share.id.value, "expiresAt": share.expires_at.map(|at| at.to_string()) });
        shares.map(value).collect()
    }))
}

fn attached(api: &Api, name: &str, all: impl FnOnce(&Lineages, &EnvironmentId) -> Vec<Value>) -> Answer {
    let id = id(name)?;
    claim(api, &id, Kind::Overlay)?;
    let items = api.admin.control.lineages(|lineages| all(lineages, &id));
    Ok(axum::Json(json!({ "items": items })).into_response())
}

/// On what condition something is written (RFC 9110, section 13.1).
enum Only {
    Always,
    /// `If-None-Match: *`
    New,
    /// `If-Match: *`
    There,
    At(Revision),
}

fn condition(headers: &HeaderMap) -> Result<Only, Box<Response>> {
    let field = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
    match (field(header::IF_MATCH), field(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Only::Always),
        (None, Some("*")) => Ok(Only::New),
        (Some("*"), None) => Ok(Only::There),
        (Some(tag), None) => {
            let revision = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let revision = revision.filter(|revision| !revision.is_empty() && !revision.contains('"'));
            revision.map(|revision| Only::At(Revision::new(revision))).ok_or_else(|| {
                no(StatusCode::BAD_REQUEST, "If-Match is one strong tag, as ETag said it, or *")
            })
        }
        _ => Err(no(StatusCode::BAD_REQUEST, "give If-Match: \"TAG\", or If-None-Match: *")),
    }
}

fn behind(api: &Api) -> Result<Behind, Box<Response>> {
    api.admin.behind.clone().ok_or_else(|| no(StatusCode::CONFLICT, "this process has no store to write to"))
}

/// Writes to the store when it is this one's turn.
async fn written<T: Send + 'static>(
    behind: &Behind,
    write: impl FnOnce(&mut OpenStore) -> Result<T, WriteError> + Send + 'static,
) -> Result<T, Box<Response>> {
    behind.write(move |open, _| write(open)).await.map_err(|error| Box::new(refused(error)))
}

/// Waits until something holds of what is in force here, for a moment.
async fn in_force(api: &Api, holds: impl Fn(&Lineages) -> bool) {
    let mut generations = api.admin.control.published().generations();
    let waited = async {
        loop {
            generations.borrow_and_update();
            if api.admin.control.lineages(&holds) || generations.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = timeout(IN_FORCE, waited).await;
}

/// How something is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct How {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn put_baseline(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(how): Query<How>,
    headers: HeaderMap,
    body: String,
) -> Response {
    answer(put(&api, &id, Kind::Baseline, &how, &headers, body).await)
}

pub(super) async fn put_overlay(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(how): Query<How>,
    headers: HeaderMap,
    body: String,
) -> Response {
    answer(put(&api, &id, Kind::Overlay, &how, &headers, body).await)
}

async fn put(api: &Api, name: &str, kind: Kind, how: &How, headers: &HeaderMap, body: String) -> Answer {
    let (id, behind) = (id(name)?, behind(api)?);
    let source = Arc::new(Source::new("(request)".into(), body, None));
    expect_only(&source, &id, kind)?;
    let only = condition(headers)?;
    let put = Put {
        create: matches!(only, Only::New),
        dry_run: how.dry_run,
        only: match &only {
            Only::At(revision) => Some(revision.clone()),
            _ => None,
        },
        there: matches!(only, Only::There),
        ..Put::default()
    };
    let own = id.clone();
    let done = written(&behind, move |open| {
        let written = open.put(&source, &put, clock::now()).map_err(|error| match error {
            // `If-None-Match` is a condition that does not hold, and no quarrel over a name.
            WriteError::Exists(id) => {
                let now = open.revision(&id);
                WriteError::Changed(id, now)
            }
            error => error,
        })?;
        Ok((
            written,
            open.revision(&own),
            open.lineages().claims(&own).next().map(|claim| claim.source.text.clone()),
        ))
    });
    let (written, revision, text) = done.await?;
    let outcome = written.environments.first().map_or(Outcome::Unchanged, |(_, outcome)| *outcome);
    if !how.dry_run
        && let Some(text) = text
    {
        in_force(api, |lineages| lineages.claims(&id).any(|claim| claim.source.text == text)).await;
    }
    let status = if outcome == Outcome::Created { StatusCode::CREATED } else { StatusCode::OK };
    let warnings: Vec<_> = written.warnings.iter().map(crate::cli::validate::value).collect();
    let value = json!({
        "id": id.as_str(),
        "kind": kind.as_str(),
        "outcome": outcome.as_str(),
        "dryRun": how.dry_run,
        "storeRevision": written.revision,
        "warnings": warnings,
    });
    Ok(tagged(status, revision.as_ref(), &value))
}

/// One blueprint, of the environment that the path names.
fn expect_only(source: &Arc<Source>, id: &EnvironmentId, kind: Kind) -> Result<(), Box<Response>> {
    let parsed = parse(source);
    if parsed.diagnostics.iter().any(Diagnostic::is_error) {
        return Err(Box::new(invalid(&parsed.diagnostics)));
    }
    match &parsed.documents[..] {
        [Document::Blueprint(blueprint)] if blueprint.id.value != *id => Err(no(
            StatusCode::BAD_REQUEST,
            &format!("the path names `{id}`, and the blueprint `{}`", blueprint.id.value),
        )),
        [Document::Blueprint(blueprint)] if Kind::of(blueprint) != kind => {
            Err(no(StatusCode::BAD_REQUEST, &format!("`{id}` is no {}", kind.as_str())))
        }
        [Document::Blueprint(_)] => Ok(()),
        _ => Err(no(StatusCode::BAD_REQUEST, "send one blueprint")),
    }
}

pub(super) async fn delete_baseline(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(how): Query<How>,
    headers: HeaderMap,
) -> Response {
    answer(delete(&api, &id, Kind::Baseline, &how, &headers).await)
}

pub(super) async fn delete_overlay(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(how): Query<How>,
    headers: HeaderMap,
) -> Response {
    answer(delete(&api, &id, Kind::Overlay, &how, &headers).await)
}

async fn delete(api: &Api, name: &str, kind: Kind, how: &How, headers: &HeaderMap) -> Answer {
    let (id, behind) = (id(name)?, behind(api)?);
    let only = match condition(headers)? {
        Only::At(revision) => Some(revision),
        Only::New => return Err(no(StatusCode::BAD_REQUEST, "what is not there cannot be deleted")),
        Only::Always | Only::There => None,
    };
    let (own, dry_run) = (id.clone(), how.dry_run);
    let done = written(&behind, move |open| {
        open.look_at(&own)?;
        let of_kind = open.lineages().claims(&own).next().is_some_and(|claim| Kind::of(claim) == kind);
        match of_kind {
            true => open.delete(&own, only.as_ref(), dry_run),
            false => Err(WriteError::NotFound(format!("{} `{own}`", kind.as_str()))),
        }
    });
    done.await?;
    if !dry_run {
        in_force(api, |lineages| lineages.claims(&id).next().is_none()).await;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Where a service is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    url: String,
}

pub(super) async fn attach(
    State(api): State<Api>,
    Path((id, service)): Path<(String, String)>,
    Query(how): Query<How>,
    body: String,
) -> Response {
    let attached = async {
        let Address { url } =
            serde_json::from_str(&body).map_err(|error| no(StatusCode::BAD_REQUEST, &error.to_string()))?;
        let url: Url = url.parse().map_err(|why: String| no(StatusCode::BAD_REQUEST, &why))?;
        attach_at(&api, &id, &service, Some(url), &how).await
    };
    answer(attached.await)
}

pub(super) async fn detach(
    State(api): State<Api>,
    Path((id, service)): Path<(String, String)>,
    Query(how): Query<How>,
) -> Response {
    answer(attach_at(&api, &id, &service, None, &how).await)
}

async fn attach_at(api: &Api, name: &str, to: &str, url: Option<Url>, how: &How) -> Answer {
    let (id, to, behind) = (id(name)?, service(to)?, behind(api)?);
    claim(api, &id, Kind::Overlay)?;
    let (own, own_service, own_url, dry_run) = (id.clone(), to.clone(), url.clone(), how.dry_run);
    let done = written(&behind, move |open| open.attach(&own, &own_service, own_url.as_ref(), dry_run));
    let outcome = done.await?;
    if !dry_run {
        in_force(api, |lineages| {
            let known = lineages.attachments(&id).iter().flat_map(|record| &record.services);
            let at = known.filter(|one| one.service.value == to).map(|one| &one.url.value).next();
            at == url.as_ref()
        })
        .await;
    }
    match url {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(url) => {
            let status = if outcome == Outcome::Created { StatusCode::CREATED } else { StatusCode::OK };
            let value =
                json!({ "service": to.as_str(), "url": url.to_string(), "outcome": outcome.as_str() });
            Ok((status, axum::Json(value)).into_response())
        }
    }
}

/// A link that is to be made.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLink {
    ttl: Option<String>,
    service: Option<String>,
}

impl NewLink {
    fn read(body: &str) -> serde_json::Result<Self> {
        // An object: what is derived would take a list as well.
        let object: serde_json::Map<String, Value> = serde_json::from_str(body)?;
        serde_json::from_value(Value::Object(object))
    }
}

pub(super) async fn share(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(how): Query<How>,
    body: String,
) -> Response {
    answer(share_with(&api, &name, how.dry_run, &body).await)
}

async fn share_with(api: &Api, name: &str, dry_run: bool, body: &str) -> Answer {
    let wrong = |why: String| no(StatusCode::BAD_REQUEST, &why);
    let link = NewLink::read(body).map_err(|error| wrong(error.to_string()))?;
    let lasts = link.ttl.as_deref().map(ttl).transpose().map_err(|why| wrong(format!("`ttl` is {why}")))?;
    let to = link.service.as_deref().map(service).transpose()?;
    let (id, behind) = (id(name)?, behind(api)?);
    claim(api, &id, Kind::Overlay)?;
    let gateway = api.admin.gateway_port();
    let made =
        api.admin.control.lineages(|lineages| SharedLink::new(&id, lineages, gateway, to.as_ref(), lasts));
    let shared = made.map_err(|error| no(StatusCode::CONFLICT, &error.message))?;
    let value = shared.value(&id);
    let (own, kept) = (id.clone(), shared.kept);
    let key = kept.id.clone();
    written(&behind, move |open| open.share(&own, &kept, dry_run)).await?;
    if !dry_run {
        in_force(api, |lineages| {
            let known = lineages.attachments(&id).iter().flat_map(|record| &record.shares);
            known.into_iter().any(|known| *known.id.value == *key)
        })
        .await;
    }
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], axum::Json(value)).into_response())
}

pub(super) async fn unshare(
    State(api): State<Api>,
    Path((name, share)): Path<(String, String)>,
    Query(how): Query<How>,
) -> Response {
    let unshared = async {
        let (id, behind) = (id(&name)?, behind(&api)?);
        claim(&api, &id, Kind::Overlay)?;
        let dry_run = how.dry_run;
        let own = id.clone();
        let gone = share.clone();
        written(&behind, move |open| open.unshare(&own, Some(&share), dry_run)).await?;
        if !dry_run {
            in_force(&api, |lineages| {
                let known = lineages.attachments(&id).iter().flat_map(|record| &record.shares);
                !known.into_iter().any(|known| *known.id.value == *gone)
            })
            .await;
        }
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    answer(unshared.await)
}
