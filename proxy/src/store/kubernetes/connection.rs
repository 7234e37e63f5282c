//! Calls of the Kubernetes API, by whatever lets us in: a kubeconfig, or a pod's service account. Every wait is bounded.

use std::env;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::{Method, Request, header};
use hyper_util::client::legacy;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::WatchEvent;
use kube::core::response::Status;
use kube::{Client, Config};
use overlane_config::blueprint::API_VERSION;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::address::KubernetesAddress;
use super::object::{Kind, Object};
use crate::store::shared::Fault;

/// The API server is given so long to be connected to.
const CONNECT: Duration = Duration::from_secs(3);
/// And so long to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(8);
/// A page of a listing may take longer.
pub(super) const PAGE_ANSWER: Duration = Duration::from_secs(30);
/// Set in every pod.
const POD: &str = "KUBERNETES_SERVICE_HOST";
const INSTALL: &str = "kubectl apply -f deploy/kubernetes/crds/";

/// Something that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    Kind(Kind),
    Status(Kind),
    ConfigMaps,
}

impl Resource {
    /// The group, as rules of RBAC name it.
    fn group(self) -> &'static str {
        match self {
            Self::ConfigMaps => "",
            _ => API_VERSION.split_once('/').map_or(API_VERSION, |(group, _)| group),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Kind(kind) => kind.plural().to_owned(),
            Self::Status(kind) => format!("{}/status", kind.plural()),
            Self::ConfigMaps => "configmaps".to_owned(),
        }
    }

    fn path(self, namespace: &str, name: &str) -> String {
        let (api, plural, below) = match self {
            Self::Kind(kind) => (format!("/apis/{API_VERSION}"), kind.plural(), ""),
            Self::Status(kind) => (format!("/apis/{API_VERSION}"), kind.plural(), "/status"),
            Self::ConfigMaps => ("/api/v1".to_owned(), "configmaps", ""),
        };
        let slash = if name.is_empty() { "" } else { "/" };
        format!("{api}/namespaces/{namespace}/{plural}{slash}{name}{below}")
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody can be asked, or not by us: nothing was sent.
    Unsent(String),
    /// The connection broke, or nothing came in time: it may have been done.
    Broken(String),
    /// What the API server says.
    Refused { status: Box<Status>, verb: &'static str, resource: Resource },
}

impl Failure {
    /// What ends a watch.
    pub(super) fn of_watch(status: Box<Status>, kind: Kind) -> Self {
        Self::Refused { status, verb: "watch", resource: Resource::Kind(kind) }
    }

    fn code(&self) -> u16 {
        match self {
            Self::Refused { status, .. } => status.code,
            _ => 0,
        }
    }

    /// Somebody else came before: it is another state, or there already.
    pub(super) fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    /// What is asked for is not there, but others of its kind may be.
    pub(super) fn is_absent(&self) -> bool {
        let named = |status: &Status| status.details.as_ref().is_some_and(|details| !details.name.is_empty());
        matches!(self, Self::Refused { status, .. } if status.code == 404 && named(status))
    }

    /// We may not.
    pub(super) fn is_forbidden(&self) -> bool {
        self.code() == 403
    }

    /// The state that was asked for is forgotten, or is none of this cluster.
    pub(super) fn is_forgotten(&self) -> bool {
        match self {
            Self::Refused { status, .. } => {
                status.code == 410
                    || matches!(status.reason.as_str(), "Expired" | "Gone")
                    || status.message.contains("Too large resource version")
            }
            _ => false,
        }
    }

    /// Whether what was sent may have been done.
    pub(super) fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Broken(_)) || matches!(self.code(), 500 | 502 | 504)
    }

    /// Whether it may be otherwise a moment later.
    pub(super) fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused { .. }) || matches!(self.code(), 429 | 500 | 502..=504)
    }

    /// The same of a call that changes nothing.
    pub(super) fn sure(self) -> Self {
        match self {
            Self::Broken(why) => Self::Unsent(why),
            other => other,
        }
    }

    /// The same after a call that may have been done.
    pub(super) fn unsure(self) -> Self {
        match self {
            Self::Unsent(why) => Self::Broken(why),
            other => other,
        }
    }

    /// For people, of a store: what to do, where that is known.
    pub(super) fn fault(&self, store: &str) -> Fault {
        let (status, verb, resource) = match self {
            Self::Unsent(why) | Self::Broken(why) => return Fault(format!("{store}: {why}")),
            Self::Refused { status, verb, resource } => (status, verb, resource),
        };
        let says = status.message.trim_end();
        let remedy = match status.code {
            401 => {
                "; what the kubeconfig or the service account shows is not valid, or not any more".to_owned()
            }
            403 if says.contains("is being terminated") => String::new(),
            403 => format!(
                "; it takes a Role with {{apiGroups: [\"{}\"], resources: [{}], verbs: [{verb}]}}, as deploy/kubernetes/rbac.yaml has it",
                resource.group(),
                resource.name(),
            ),
            404 if !matches!(resource, Resource::ConfigMaps) && !self.is_absent() => {
                format!("; Overlane's resources are not defined there: `{INSTALL}`")
            }
            404 if says.starts_with("namespaces ") => "; `kubectl create namespace` makes it".to_owned(),
            413 => "; it is too large for the cluster: write fewer environments at once".to_owned(),
            _ => String::new(),
        };
        Fault(format!("{store}: the API server says: {says}{remedy}"))
    }
}

/// What lets us in.
enum Credentials {
    Kubeconfig(Box<Kubeconfig>),
    Pod,
}

fn credentials(address: &KubernetesAddress) -> Result<Credentials, String> {
    let read = match &address.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let named =
        address.kubeconfig.is_some() || env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
    let missing = |error: &KubeconfigError| match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(why, _) => why.kind() == io::ErrorKind::NotFound,
        _ => false,
    };
    match read {
        Ok(kubeconfig) => Ok(Credentials::Kubeconfig(Box::new(kubeconfig))),
        Err(error) if missing(&error) && !named => match env::var_os(POD) {
            Some(_) => Ok(Credentials::Pod),
            None => Err(
                "no cluster is known: there is no ~/.kube/config, KUBECONFIG is not set, and this is no pod"
                    .to_owned(),
            ),
        },
        Err(error) => Err(error.to_string()),
    }
}

impl KubernetesAddress {
    /// The namespace and the cluster, whatever the current context is later on.
    #[must_use]
    pub(crate) fn resolved(&self) -> String {
        let cluster = match credentials(self) {
            Ok(Credentials::Kubeconfig(kubeconfig)) => {
                let context = self.context.as_ref().or(kubeconfig.current_context.as_ref());
                let named = kubeconfig.contexts.iter().find(|one| Some(&one.name) == context);
                let cluster = named.and_then(|one| Some(&one.context.as_ref()?.cluster));
                let named = kubeconfig.clusters.iter().find(|one| Some(&one.name) == cluster);
                named.and_then(|one| one.cluster.as_ref()?.server.clone()).unwrap_or_default()
            }
            Ok(Credentials::Pod) => env::var(POD).unwrap_or_default(),
            Err(_) => String::new(),
        };
        let namespace = self.namespace.clone().or_else(|| default_namespace(self).ok()).unwrap_or_default();
        format!("kubernetes:{namespace} at {cluster}")
    }
}

/// The namespace where none is named.
fn default_namespace(address: &KubernetesAddress) -> Result<String, String> {
    match credentials(address)? {
        Credentials::Pod => Ok(Config::incluster().map_err(|error| error.to_string())?.default_namespace),
        Credentials::Kubeconfig(kubeconfig) => {
            let context = address.context.as_ref().or(kubeconfig.current_context.as_ref());
            let named = kubeconfig.contexts.iter().find(|one| Some(&one.name) == context);
            let namespace = named.and_then(|one| one.context.as_ref()?.namespace.clone());
            Ok(namespace.unwrap_or_else(|| "default".to_owned()))
        }
    }
}

/// An API server, and a namespace there.
pub(super) struct Connection {
    address: KubernetesAddress,
    pub(super) namespace: String,
    /// Made when it is first needed, on the runtime that needs it; and again where the API server does not know us any
    /// more, since what lets us in may be another thing by then.
    client: Mutex<Option<Client>>,
}

impl Connection {
    pub(super) fn new(address: &KubernetesAddress) -> Result<Self, Fault> {
        let namespace = match &address.namespace {
            Some(namespace) => namespace.clone(),
            None => default_namespace(address).map_err(|why| Fault(format!("{address}: {why}")))?,
        };
        Ok(Self { address: address.clone(), namespace, client: Mutex::default() })
    }

    async fn config(&self) -> Result<Config, Failure> {
        let unsent = |why: &dyn std::fmt::Display| Failure::Unsent(why.to_string());
        let mut config = match credentials(&self.address).map_err(Failure::Unsent)? {
            Credentials::Pod => Config::incluster().map_err(|error| unsent(&error))?,
            Credentials::Kubeconfig(kubeconfig) => {
                let options =
                    KubeConfigOptions { context: self.address.context.clone(), ..Default::default() };
                Config::from_custom_kubeconfig(*kubeconfig, &options).await.map_err(|error| unsent(&error))?
            }
        };
        config.connect_timeout = Some(CONNECT);
        // What is sent twice may be done twice: who asks knows whether that is right.
        config.default_retry = false;
        if config.accept_invalid_certs {
            tracing::warn!(cluster = %config.cluster_url, "the kubeconfig says not to verify who answers for the cluster");
        }
        Ok(config)
    }

    async fn client(&self) -> Result<Client, Failure> {
        let mut known = self.client.lock().await;
        if let Some(client) = &*known {
            return Ok(client.clone());
        }
        let config = self.config().await?;
        let at = config.cluster_url.clone();
        let client = Client::try_from(config).map_err(|error| Failure::Unsent(format!("{at}: {error}")))?;
        Ok(known.insert(client).clone())
    }

    /// What a failure of the client means here.
    async fn failure(&self, error: kube::Error, verb: &'static str, resource: Resource) -> Failure {
        match error {
            kube::Error::Api(status) => {
                if status.code == 401 {
                    *self.client.lock().await = None;
                }
                Failure::Refused { status, verb, resource }
            }
            kube::Error::Service(error) => {
                let unsent = error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect);
                let why = chain(&*error);
                if unsent { Failure::Unsent(why) } else { Failure::Broken(why) }
            }
            error @ kube::Error::Auth(_) => Failure::Unsent(chain(&error)),
            error => Failure::Broken(chain(&error)),
        }
    }

    /// Asks, and waits so long for an answer.
    pub(super) async fn ask(&self, call: Call<'_>, patience: Duration) -> Result<Value, Failure> {
        let (verb, resource) = (call.verb, call.resource);
        let client = self.client().await?;
        let asked = timeout(patience, client.request::<Value>(call.request(&self.namespace)?)).await;
        match asked {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(error, verb, resource).await),
            Err(_) => Err(Failure::Broken(format!(
                "the API server does not answer within {} s",
                patience.as_secs()
            ))),
        }
    }

    /// An object; none where it is not there.
    pub(super) async fn get(&self, kind: Kind, name: &str) -> Result<Option<Object>, Failure> {
        let call = Call { name, ..Call::new("get", Resource::Kind(kind)) };
        match self.ask(call, ANSWER).await {
            Ok(value) => Ok(Some(Object { kind, value })),
            Err(failure) if failure.is_absent() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Follows a kind from a state, for so many seconds.
    pub(super) async fn follow(
        &self,
        kind: Kind,
        after: &str,
        seconds: u64,
    ) -> Result<BoxStream<'static, Result<WatchEvent<Value>, Failure>>, Failure> {
        let query = format!(
            "watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            form_urlencoded::byte_serialize(after.as_bytes()).collect::<String>()
        );
        let resource = Resource::Kind(kind);
        let call = Call { query: &query, ..Call::new("watch", resource) };
        let request = call.request(&self.namespace)?;
        let client = self.client().await?;
        let events = match timeout(ANSWER, client.request_events::<Value>(request)).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return Err(self.failure(error, "watch", resource).await),
            Err(_) => return Err(Failure::Broken("the API server does not begin the watch".to_owned())),
        };
        Ok(events
            .map(move |event| match event {
                Ok(event) => Ok(event),
                Err(kube::Error::Api(status)) => Err(Failure::of_watch(status, kind)),
                Err(error) => Err(Failure::Broken(chain(&error))),
            })
            .boxed())
    }
}

/// A call that is about to be made.
#[derive(Clone, Copy)]
pub(super) struct Call<'c> {
    /// As RBAC has it.
    pub(super) verb: &'static str,
    pub(super) resource: Resource,
    /// Of the object; empty for all.
    pub(super) name: &'c str,
    /// Of the URL.
    pub(super) query: &'c str,
    pub(super) body: Option<&'c Value>,
    /// Only what is said about objects.
    pub(super) metadata_only: bool,
}

impl Call<'_> {
    pub(super) fn new(verb: &'static str, resource: Resource) -> Self {
        Self { verb, resource, name: "", query: "", body: None, metadata_only: false }
    }

    fn request(&self, namespace: &str) -> Result<Request<Vec<u8>>, Failure> {
        let (method, kind) = match self.verb {
            "create" => (Method::POST, "application/json"),
            "update" => (Method::PUT, "application/json"),
            "patch" => (Method::PATCH, "application/merge-patch+json"),
            "delete" => (Method::DELETE, "application/json"),
            _ => (Method::GET, ""),
        };
        let (path, mark) =
            (self.resource.path(namespace, self.name), if self.query.is_empty() { "" } else { "?" });
        let mut request = Request::builder().method(method).uri(format!("{path}{mark}{}", self.query));
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        if self.metadata_only {
            request = request
                .header(header::ACCEPT, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        }
        let body = self.body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        request.body(body).map_err(|error| Failure::Unsent(error.to_string()))
    }
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut shown = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !shown.contains(&text) {
            shown = format!("{shown}: {text}");
        }
        cause = error.source();
    }
    shown
}
