//! A stand-in for a Kubernetes API server, over plain HTTP: as much of its API as clients of custom resources and
//! ConfigMaps use. It lists in pages of one state, follows with bookmarks, forgets (410), refuses what is out of date (409),
//! what is not allowed (403), and what the definitions' schemas do not have (422), and keeps what is of a status apart. It notes who
//! manages which fields, and applies on the server's side. It does not evaluate the definitions' rules (CEL).
//!
//! Held against the API's concepts: <https://kubernetes.io/docs/reference/using-api/api-concepts/>.

#[path = "kubernetes/managed.rs"]
mod managed;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use overlane::store::kubernetes::{Kind, definition};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The namespace that there is.
pub const NAMESPACE: &str = "staging";
const GROUP: &str = "overlane.dev";
const API: &str = "overlane.dev/v1alpha1";
/// A watch that names no end lasts so long.
const LASTS: u64 = 300;

/// What is applied on the server's side.
pub const APPLY: &str = "application/apply-patch+yaml";
/// The manager of what `kubectl apply` writes without `--server-side`.
const KUBECTL: &str = "kubectl-client-side-apply";

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
/// The plural of a resource, and a name.
type Place = (String, String);

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Place, Value>,
    /// Every change: its revision, `ADDED`, `MODIFIED` or `DELETED`, the resource, and the object.
    log: Vec<(u64, &'static str, String, Value)>,
    /// States before this one are forgotten.
    forgotten: u64,
    /// What is left of listings, by `continue`.
    pages: HashMap<String, (Vec<Value>, u64)>,
    forbidden: HashSet<(String, String)>,
    /// Whether the custom resources are not defined.
    undefined: bool,
    /// How often all watches were cut.
    cuts: u64,
    requests: Vec<String>,
}

/// The API server; it ends with this.
pub struct Kubernetes {
    at: SocketAddr,
    folder: TempDir,
    shared: Shared,
    _over: watch::Sender<()>,
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    told: watch::Sender<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kubernetes {
    /// Starts one, with nothing in it but its namespace and the definitions.
    #[must_use]
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let shared = Shared { state: Arc::default(), told: watch::Sender::new(()) };
        let (over, ended) = watch::channel(());
        let served = shared.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, served, ended));
        });
        Self { at, folder: tempfile::tempdir().unwrap(), shared, _over: over }
    }

    /// Where it listens.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// A kubeconfig that leads to it, or to `at` in its place.
    ///
    /// # Panics
    /// The disk is full.
    #[must_use]
    pub fn kubeconfig(&self, at: Option<SocketAddr>) -> PathBuf {
        let server = at.unwrap_or(self.at);
        let path = self.folder.path().join(format!("{}", server.port()));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{ "name": "double", "cluster": { "server": format!("http://{server}") } }],
            "users": [{ "name": "tester", "user": { "token": "secret" } }],
            "contexts": [{
                "name": "double",
                "context": { "cluster": "double", "user": "tester", "namespace": NAMESPACE },
            }],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// The store in its namespace, as `--store` names it.
    #[must_use]
    pub fn address(&self, at: Option<SocketAddr>) -> String {
        format!("kubernetes:{NAMESPACE}?kubeconfig={}", self.kubeconfig(at).display())
    }

    /// Forgets all states but the present one.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.forgotten = state.revision;
        state.pages.clear();
    }

    /// Ends all watches, in the middle of whatever is told.
    pub fn cut(&self) {
        self.shared.state().cuts += 1;
        self.shared.told.send_replace(());
    }

    /// Refuses a verb on a resource from now on, such as `list` on `overlays`.
    pub fn forbid(&self, verb: &str, resource: &str) {
        self.shared.state().forbidden.insert((verb.to_owned(), resource.to_owned()));
    }

    /// Has no custom resources from now on, as a cluster to which the definitions were not applied.
    pub fn undefine(&self) {
        self.shared.state().undefined = true;
    }

    /// Has nothing from now on, and begins to count anew, as who has to restore it.
    pub fn anew(&self) {
        let cuts = self.shared.state().cuts + 1;
        *self.shared.state() = State { cuts, ..State::default() };
        self.shared.told.send_replace(());
    }

    /// An object; of what resource, and its name.
    #[must_use]
    pub fn object(&self, resource: &str, name: &str) -> Option<Value> {
        self.shared.state().objects.get(&(resource.to_owned(), name.to_owned())).cloned()
    }

    /// What was asked for so far, such as `GET /apis/…`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }

    /// Writes an object as somebody else would, with `kubectl apply`: what is not said of it stays.
    ///
    /// # Panics
    /// It is refused.
    pub fn apply(&self, resource: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut state = self.shared.state();
        let known = state.objects.get(&(resource.to_owned(), name.clone())).cloned();
        let done = match known {
            None => state.create(resource, object.clone(), KUBECTL, false),
            Some(mut known) => {
                merge(&mut known, object);
                state.update(resource, &name, known, KUBECTL, false, false)
            }
        };
        assert!(done.is_ok(), "{:?}", done.err().map(|refused| refused.2));
        drop(state);
        self.shared.told.send_replace(());
    }

    /// Removes an object as somebody else would.
    ///
    /// # Panics
    /// It is not there.
    pub fn delete(&self, resource: &str, name: &str) {
        assert!(self.shared.state().delete(resource, name, &Value::Null, false).is_ok());
        self.shared.told.send_replace(());
    }
}

/// Why something is refused: the code, the reason, the message, and the object.
type Refused = (u16, &'static str, String, String);

fn qualified(resource: &str) -> String {
    match resource {
        "configmaps" => resource.to_owned(),
        _ => format!("{resource}.{GROUP}"),
    }
}

fn not_found(resource: &str, name: &str) -> Refused {
    (404, "NotFound", format!("{} \"{name}\" not found", qualified(resource)), name.to_owned())
}

fn conflict(resource: &str, name: &str, why: &str) -> Refused {
    let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(resource));
    (409, "Conflict", message, name.to_owned())
}

const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl State {
    fn place(resource: &str, name: &str) -> Place {
        (resource.to_owned(), name.to_owned())
    }

    fn written(&mut self, kind: &'static str, resource: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.log.push((self.revision, kind, resource.to_owned(), object.clone()));
        object
    }

    fn create(
        &mut self,
        resource: &str,
        mut object: Value,
        manager: &str,
        dry: bool,
    ) -> Result<Value, Refused> {
        managed::note(None, &mut object, manager, false, &now());
        self.make(resource, object, dry)
    }

    /// Makes an object of which it is noted already who manages what.
    fn make(&mut self, resource: &str, mut object: Value, dry: bool) -> Result<Value, Refused> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let place = Self::place(resource, &name);
        if self.objects.contains_key(&place) {
            let message = format!("{} \"{name}\" already exists", qualified(resource));
            return Err((409, "AlreadyExists", message, name));
        }
        fitting(resource, &name, &mut object)?;
        if let Some(fields) = object.as_object_mut().filter(|_| resource != "configmaps") {
            fields.remove("status");
        }
        let metadata = &mut object["metadata"];
        metadata["uid"] = format!("{:08x}-{}", self.revision + 1, "0000-4000-8000-000000000000").into();
        metadata["creationTimestamp"] = now().into();
        metadata["generation"] = 1.into();
        if dry {
            return Ok(object);
        }
        let object = self.written("ADDED", resource, object);
        self.objects.insert(place, object.clone());
        Ok(object)
    }

    /// Of the whole object, or of its status alone.
    fn update(
        &mut self,
        resource: &str,
        name: &str,
        mut object: Value,
        manager: &str,
        status: bool,
        dry: bool,
    ) -> Result<Value, Refused> {
        let known = self.known(resource, name)?;
        managed::note(Some(&known), &mut object, manager, status, &now());
        self.change(resource, name, object, status, dry)
    }

    fn known(&self, resource: &str, name: &str) -> Result<Value, Refused> {
        let known = self.objects.get(&Self::place(resource, name)).cloned();
        known.ok_or_else(|| not_found(resource, name))
    }

    /// The object that comes of it where a part of it is applied on the server's side.
    fn apply(
        &mut self,
        resource: &str,
        name: &str,
        applied: &Value,
        query: &HashMap<String, String>,
        dry: bool,
    ) -> Result<Value, Refused> {
        let Some(manager) = query.get("fieldManager").filter(|manager| !manager.is_empty()) else {
            let why = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
            return Err((422, "Invalid", why.to_owned(), name.to_owned()));
        };
        if !applied["metadata"]["managedFields"].is_null() {
            let why = "metadata.managedFields must be nil".to_owned();
            return Err((400, "BadRequest", why, name.to_owned()));
        }
        let force = query.get("force").is_some_and(|force| force == "true");
        let known = self.objects.get(&Self::place(resource, name)).cloned();
        // What definitions do not have is nobody's.
        let mut fitting_part = applied.clone();
        fitting(resource, name, &mut fitting_part)?;
        let next = managed::apply(known.as_ref(), &fitting_part, manager, force, &now());
        let next = next.map_err(|conflicts| {
            let each = |(field, manager): &(String, String)| format!("conflict with \"{manager}\": {field}");
            let all: Vec<_> = conflicts.iter().map(each).collect();
            let message = format!(
                "Apply failed with {} conflict{}: {}",
                all.len(),
                if all.len() == 1 { "" } else { "s" },
                all.join(", ")
            );
            (409, "Conflict", message, name.to_owned())
        })?;
        match known {
            None => self.make(resource, next, dry),
            Some(known) => {
                let mut next = next;
                let version = &applied["metadata"]["resourceVersion"];
                next["metadata"]["resourceVersion"] = if version.is_null() {
                    known["metadata"]["resourceVersion"].clone()
                } else {
                    version.clone()
                };
                self.change(resource, name, next, false, dry)
            }
        }
    }

    /// Writes an object of which it is noted already who manages what.
    fn change(
        &mut self,
        resource: &str,
        name: &str,
        mut object: Value,
        status: bool,
        dry: bool,
    ) -> Result<Value, Refused> {
        let place = Self::place(resource, name);
        let known = self.known(resource, name)?;
        fitting(resource, name, &mut object)?;
        let metadata = |object: &Value, field: &str| object["metadata"][field].as_str().map(str::to_owned);
        match metadata(&object, "resourceVersion") {
            None if resource != "configmaps" => {
                let message = format!(
                    "{} \"{name}\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
                    qualified(resource)
                );
                return Err((422, "Invalid", message, name.to_owned()));
            }
            version if version.is_some() && version != metadata(&known, "resourceVersion") => {
                return Err(conflict(resource, name, MODIFIED));
            }
            _ => {}
        }
        if metadata(&object, "uid").is_some_and(|uid| Some(uid) != metadata(&known, "uid")) {
            return Err(conflict(resource, name, "Precondition failed: UID in precondition"));
        }
        let mut next = known.clone();
        if status {
            next["status"] = object["status"].clone();
            next["metadata"]["managedFields"] = object["metadata"]["managedFields"].clone();
        } else {
            for field in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
                object["metadata"][field] = known["metadata"][field].clone();
            }
            if resource != "configmaps" {
                object["status"] = known["status"].clone();
                if object["status"].is_null() {
                    object.as_object_mut().unwrap().remove("status");
                }
            }
            next = object;
            let said = |object: &Value| (object["spec"].clone(), object["attached"].clone());
            if said(&next) != said(&known) {
                let generation = known["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
                next["metadata"]["generation"] = generation.into();
            }
        }
        // What changes nothing is no change.
        if dry || next == known {
            return Ok(next);
        }
        let next = self.written("MODIFIED", resource, next);
        self.objects.insert(place, next.clone());
        Ok(next)
    }

    fn delete(&mut self, resource: &str, name: &str, options: &Value, dry: bool) -> Result<Value, Refused> {
        let place = Self::place(resource, name);
        let known = self.objects.get(&place).cloned().ok_or_else(|| not_found(resource, name))?;
        for field in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][field];
            if !wanted.is_null() && *wanted != known["metadata"][field] {
                return Err(conflict(resource, name, &format!("Precondition failed: {field}")));
            }
        }
        if !dry {
            self.objects.remove(&place);
            self.written("DELETED", resource, known);
        }
        Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }))
    }

    fn list(&mut self, resource: &str, query: &HashMap<String, String>) -> Result<Value, Refused> {
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let token = query.get("continue").filter(|token| !token.is_empty());
        let (mut items, revision) = match token {
            Some(token) => self.pages.get(token).cloned().ok_or_else(|| {
                let why = "The provided continue parameter is too old to display a consistent list result.";
                (410, "Expired", why.to_owned(), String::new())
            })?,
            None => {
                let of = |(place, object): (&Place, &Value)| (place.0 == resource).then(|| object.clone());
                (self.objects.iter().filter_map(of).collect(), self.revision)
            }
        };
        let rest = items.split_off(limit.min(items.len()));
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if !rest.is_empty() {
            let token = format!("{resource}+{}/{revision}", rest[0]["metadata"]["name"].as_str().unwrap());
            metadata["continue"] = token.as_str().into();
            metadata["remainingItemCount"] = rest.len().into();
            self.pages.insert(token, (rest, revision));
        }
        let (version, kind) = described(resource);
        Ok(
            json!({ "apiVersion": version, "kind": format!("{kind}List"), "metadata": metadata, "items": items }),
        )
    }
}

fn described(resource: &str) -> (&'static str, &'static str) {
    match resource {
        "baselines" => (API, "Baseline"),
        "overlays" => (API, "Overlay"),
        _ => ("v1", "ConfigMap"),
    }
}

fn now() -> String {
    let now = overlane::clock::now().to_string();
    // Whole seconds, as the API server has them.
    now.split_once('.').map_or(now.clone(), |(seconds, _)| format!("{seconds}Z"))
}

/// Refuses an object that its definition does not have so, and drops what that does not know.
fn fitting(resource: &str, name: &str, object: &mut Value) -> Result<(), Refused> {
    let kind = match resource {
        "baselines" => Kind::Baseline,
        "overlays" => Kind::Overlay,
        _ => return Ok(()),
    };
    let invalid = |why: String| {
        let message = format!("{} \"{name}\" is invalid: {why}", kind.name());
        (422, "Invalid", message, name.to_owned())
    };
    if object["kind"] != kind.name() || object["apiVersion"] != API {
        let why = "the kind in the data does not match the expected kind".to_owned();
        return Err((400, "BadRequest", why, name.to_owned()));
    }
    if object["metadata"]["name"] != name {
        return Err((
            400,
            "BadRequest",
            "the name of the object does not match the URL".to_owned(),
            name.to_owned(),
        ));
    }
    let annotations = object["metadata"]["annotations"].as_object().into_iter().flatten();
    let long: usize = annotations.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if long > 256 << 10 {
        return Err(invalid("metadata.annotations: Too long: may not be more than 262144 bytes".to_owned()));
    }
    let definition = definition(kind);
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let metadata = object["metadata"].clone();
    fits("", schema, object).map_err(invalid)?;
    object["metadata"] = metadata;
    Ok(())
}

fn fits(at: &str, schema: &Value, value: &mut Value) -> Result<(), String> {
    if schema["x-kubernetes-preserve-unknown-fields"] == true || at == ".metadata" {
        return Ok(());
    }
    let wanted = schema["type"].as_str().unwrap_or_default();
    let right = match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        _ => value.is_i64(),
    };
    if !right {
        return Err(format!(
            "{}: Invalid value: {value}: must be of type {wanted}",
            at.trim_start_matches('.')
        ));
    }
    if let Some(known) = schema["enum"].as_array().filter(|known| !known.contains(value)) {
        return Err(format!(
            "{}: Unsupported value: {value}: supported values: {known:?}",
            at.trim_start_matches('.')
        ));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            return Err(format!("{}.{name}: Required value", at.trim_start_matches('.')));
        }
    }
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| schema["properties"].get(name).is_some());
        for (name, value) in fields {
            fits(&format!("{at}.{name}"), &schema["properties"][name.as_str()], value)?;
        }
    }
    for (number, item) in value.as_array_mut().into_iter().flatten().enumerate() {
        fits(&format!("{at}[{number}]"), &schema["items"], item)?;
    }
    Ok(())
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(name)),
            value => merge(&mut into[name.as_str()], value),
        }
    }
}

async fn serve(listener: std::net::TcpListener, shared: Shared, mut ended: watch::Receiver<()>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let shared = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(shared.clone(), request));
                    // Whoever asks may go away.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            changed = ended.changed() => if changed.is_err() { return },
        }
    }
}

fn whole(code: u16, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let status = StatusCode::from_u16(code).unwrap();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn refused((code, reason, message, name): Refused) -> Answer {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    if !name.is_empty() {
        status["details"] = json!({ "name": name });
    }
    whole(code, &status)
}

/// What a path names.
struct Asked {
    namespace: String,
    resource: String,
    name: String,
    status: bool,
}

fn asked(path: &str) -> Option<Asked> {
    let below = path.strip_prefix(&format!("/apis/{API}/namespaces/"));
    let rest = below.or_else(|| path.strip_prefix("/api/v1/namespaces/"))?;
    let mut parts = rest.split('/').map(str::to_owned);
    let (namespace, resource) = (parts.next()?, parts.next()?);
    let (name, sub) = (parts.next().unwrap_or_default(), parts.next());
    let known = match below {
        Some(_) => ["baselines", "overlays"].contains(&resource.as_str()),
        None => resource == "configmaps",
    };
    known.then_some(Asked { namespace, resource, name, status: sub.as_deref() == Some("status") })
}

async fn answer(shared: Shared, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    // A body that is cut off is none.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let path = head.uri.path().to_owned();
    shared.state().requests.push(format!("{} {}", head.method, head.uri));
    let undefined =
        || (404, "NotFound", "the server could not find the requested resource".to_owned(), String::new());
    let Some(asked) = asked(&path) else {
        return Ok(discovery(&path).map_or_else(|| refused(undefined()), |found| whole(200, &found)));
    };
    let query: HashMap<String, String> = form(head.uri.query().unwrap_or_default()).into_iter().collect();
    let watched = query.get("watch").is_some_and(|watch| watch == "1" || watch == "true");
    let verb = match (&head.method, asked.name.is_empty()) {
        (&Method::GET, true) if watched => "watch",
        (&Method::GET, true) => "list",
        (&Method::GET, false) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        _ => "delete",
    };
    // `kubectl` shows no token over plain HTTP.
    if head.headers.get("authorization").is_some_and(|shown| shown != "Bearer secret") {
        return Ok(refused((401, "Unauthorized", "Unauthorized".to_owned(), String::new())));
    }
    let full = match asked.status {
        true => format!("{}/status", asked.resource),
        false => asked.resource.clone(),
    };
    {
        let state = shared.state();
        if state.undefined && asked.resource != "configmaps" {
            return Ok(refused(undefined()));
        }
        if state.forbidden.contains(&(verb.to_owned(), full.clone())) {
            let message = format!(
                "{} is forbidden: User \"tester\" cannot {verb} resource \"{full}\" in API group \"{GROUP}\" in the namespace \"{}\"",
                qualified(&asked.resource),
                asked.namespace,
            );
            return Ok(refused((403, "Forbidden", message, asked.name)));
        }
    }
    if verb == "watch" {
        return Ok(follow(shared, &asked.resource, &query));
    }
    let sent: Value = match body.is_empty() {
        true => Value::Null,
        // What is applied on the server's side may be YAML; whoever does so here writes JSON, which is that too.
        false => match serde_json::from_slice(&body) {
            Ok(sent) => sent,
            Err(why) => return Ok(refused((400, "BadRequest", why.to_string(), String::new()))),
        },
    };
    let dry = query.get("dryRun").is_some_and(|dry| dry == "All");
    let applies = head.headers.get("content-type").is_some_and(|kind| kind == APPLY);
    let verb = if verb == "patch" && applies { "apply" } else { verb };
    let done = act(&mut shared.state(), &asked, verb, sent, &query, dry);
    shared.told.send_replace(());
    Ok(match done {
        Ok(object) => whole(if verb == "create" { 201 } else { 200 }, &object),
        Err(why) => refused(why),
    })
}

fn act(
    state: &mut State,
    asked: &Asked,
    verb: &str,
    sent: Value,
    query: &HashMap<String, String>,
    dry: bool,
) -> Result<Value, Refused> {
    let Asked { namespace, resource, name, status } = asked;
    let manager = query.get("fieldManager").map_or("unknown", String::as_str);
    if namespace != NAMESPACE {
        return match verb {
            "list" => State::default().list(resource, query),
            "create" => {
                let message = format!("namespaces \"{namespace}\" not found");
                Err((404, "NotFound", message, namespace.clone()))
            }
            _ => Err(not_found(resource, name)),
        };
    }
    match verb {
        "list" => state.list(resource, query),
        "get" => {
            let object = state.objects.get(&State::place(resource, name));
            object.cloned().ok_or_else(|| not_found(resource, name))
        }
        "create" => state.create(resource, sent, manager, dry),
        "update" => state.update(resource, name, sent, manager, *status, dry),
        "apply" => state.apply(resource, name, &sent, query, dry),
        "patch" => {
            let mut object = state.known(resource, name)?;
            merge(&mut object, &sent);
            state.update(resource, name, object, manager, *status, dry)
        }
        _ => state.delete(resource, name, &sent, dry),
    }
}

/// The pairs of a query.
fn form(query: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let [byte, after @ ..] = rest {
            rest = after;
            match (byte, after) {
                (b'+', _) => bytes.push(b' '),
                (b'%', [high, low, after @ ..]) => {
                    let digits = [*high, *low];
                    let digits = std::str::from_utf8(&digits).unwrap_or_default();
                    bytes.push(u8::from_str_radix(digits, 16).unwrap_or(b'?'));
                    rest = after;
                }
                (byte, _) => bytes.push(*byte),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    };
    query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect()
}

/// Who follows.
struct Follower {
    shared: Shared,
    told: watch::Receiver<()>,
    resource: String,
    /// All up to here was told.
    from: u64,
    cuts: u64,
    bookmarks: bool,
    until: Instant,
    over: bool,
}

impl Follower {
    fn event(kind: &str, object: &Value) -> Bytes {
        Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })))
    }

    /// What is new, as lines; none where nothing is. An error ends the watch.
    fn look(&mut self) -> Option<Bytes> {
        let state = self.shared.state();
        if state.cuts != self.cuts {
            self.over = true;
            return Some(Bytes::new());
        }
        if self.from < state.forgotten {
            self.over = true;
            let message = format!("too old resource version: {} ({})", self.from, state.forgotten);
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": "Expired", "code": 410,
            });
            return Some(Self::event("ERROR", &status));
        }
        let new =
            state.log.iter().filter(|(at, _, resource, _)| *at > self.from && *resource == self.resource);
        let lines: Vec<_> = new.map(|(_, kind, _, object)| Self::event(kind, object)).collect();
        self.from = state.revision;
        (!lines.is_empty()).then(|| lines.concat().into())
    }

    async fn next(mut self) -> Option<(Result<Frame<Bytes>, Infallible>, Self)> {
        loop {
            if self.over {
                return None;
            }
            self.told.borrow_and_update();
            if let Some(lines) = self.look() {
                return Some((Ok(Frame::data(lines)), self));
            }
            match timeout_at(self.until, self.told.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => {
                    self.over = true;
                    let (version, kind) = described(&self.resource);
                    let mark = json!({
                        "apiVersion": version, "kind": kind, "metadata": { "resourceVersion": self.from.to_string() },
                    });
                    let line = if self.bookmarks { Self::event("BOOKMARK", &mark) } else { Bytes::new() };
                    return Some((Ok(Frame::data(line)), self));
                }
            }
        }
    }
}

fn follow(shared: Shared, resource: &str, query: &HashMap<String, String>) -> Answer {
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let (from, cuts, now) = {
        let state = shared.state();
        (text("resourceVersion").parse().unwrap_or(0), state.cuts, state.revision)
    };
    if from > now {
        let message = format!("Too large resource version: {from}, current: {now}");
        return refused((504, "Timeout", message, String::new()));
    }
    let lasts = Duration::from_secs(text("timeoutSeconds").parse().unwrap_or(LASTS));
    let follower = Follower {
        told: shared.told.subscribe(),
        resource: resource.to_owned(),
        from,
        cuts,
        bookmarks: text("allowWatchBookmarks") == "1" || text("allowWatchBookmarks") == "true",
        until: Instant::now() + lasts,
        over: false,
        shared,
    };
    let body = StreamBody::new(stream::unfold(follower, Follower::next)).boxed_unsync();
    Response::builder().header("content-type", "application/json").body(body).unwrap()
}

/// What it says of itself, so that `kubectl` finds its way.
fn discovery(path: &str) -> Option<Value> {
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let resource = |name: &str, kind: &str, short: &[&str]| {
        json!({
            "name": name, "singularName": kind.to_lowercase(), "namespaced": true, "kind": kind,
            "verbs": verbs, "shortNames": short,
        })
    };
    let resources = |version: &str, all: Vec<Value>| json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": all });
    let version = json!({ "groupVersion": API, "version": "v1alpha1" });
    Some(match path {
        "/version" => json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" }),
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": [{ "name": GROUP, "versions": [version], "preferredVersion": version }],
        }),
        "/api/v1" => resources("v1", vec![resource("configmaps", "ConfigMap", &["cm"])]),
        path if path == format!("/apis/{API}") => resources(
            API,
            vec![resource("baselines", "Baseline", &["bl"]), resource("overlays", "Overlay", &["ov"])],
        ),
        _ => return None,
    })
}
