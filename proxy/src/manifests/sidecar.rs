//! The sidecar as a container: what it runs, and what it needs of its pod.
//!
//! It is the one that the Helm chart gives (`overlane.sidecar` in `deploy/helm`), which a test holds.

use std::collections::BTreeMap;

use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::url::Url;
use serde::Serialize;
use serde_yaml::Value;

/// How the container, and its volume's first part, is called.
pub const NAME: &str = "overlane";
/// The volume with blueprints.
pub const VOLUME: &str = "overlane-environments";
/// Where they are for the sidecar.
const MOUNTED: &str = "/etc/overlane/environments";
/// Its outbound listener: the application's proxy.
pub const OUTBOUND: u16 = 7483;
/// Its probes and metrics.
pub const PROBES: u16 = 7482;
/// Where its inbound listener looks for a free port.
pub const INBOUND: u16 = 7485;
/// Ports that it, or another part of Overlane in a pod, listens on.
pub const OWN: std::ops::RangeInclusive<u16> = 7480..=7484;

/// What a sidecar is told beside the service that it stands before.
#[derive(Debug, Clone)]
pub struct Sidecar {
    /// Its image.
    pub image: String,
    /// When its image is pulled.
    pub pull_policy: String,
    /// Where its blueprints are.
    pub store: Store,
    /// The Secret with the token that it shows to a hub.
    pub token: Option<Key>,
    /// The baseline, where there may be several.
    pub baseline: Option<EnvironmentId>,
    /// The overlay whose instance it stands before; the baseline's where it is not said.
    pub environment: Option<EnvironmentId>,
    /// Whether it listens for the application's calls.
    pub outbound: bool,
    /// Whether it is a native sidecar.
    pub native: bool,
    /// What it asks for.
    pub requests: Amounts,
    /// What it gets at most.
    pub limits: Amounts,
}

/// Amounts of resources, by their names.
pub type Amounts = BTreeMap<String, String>;

/// Where a sidecar finds its blueprints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// A ConfigMap, mounted.
    ConfigMap(String),
    /// A store of several machines, as `--store` has it.
    Shared(String),
}

/// A value of a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The Secret.
    pub secret: String,
    /// Which value of it.
    pub key: String,
}

/// What one stands before.
#[derive(Debug, Clone)]
pub(super) struct Stands<'a> {
    pub(super) service: &'a ServiceName,
    /// Where it listens, and how that port is called.
    pub(super) inbound: u16,
    pub(super) port_name: &'a str,
    /// The application.
    pub(super) app: &'a Url,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: &'static str,
    image: String,
    image_pull_policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_policy: Option<&'static str>,
    args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<Value>,
    ports: Vec<ContainerPort>,
    startup_probe: Value,
    readiness_probe: Value,
    liveness_probe: Value,
    resources: Resources,
    security_context: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volume_mounts: Vec<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: String,
    container_port: u16,
}

#[derive(Serialize)]
struct Resources {
    requests: Amounts,
    limits: Amounts,
}

impl Sidecar {
    /// The container before a service.
    pub(super) fn container(&self, stands: &Stands<'_>) -> Value {
        let port = |name: &str, container_port| ContainerPort { name: name.to_owned(), container_port };
        let mounted = matches!(self.store, Store::ConfigMap(_));
        let container = Container {
            name: NAME,
            image: self.image.clone(),
            image_pull_policy: self.pull_policy.clone(),
            restart_policy: self.native.then_some("Always"),
            args: self.args(stands),
            env: self.token.iter().map(token).collect(),
            ports: vec![port(stands.port_name, stands.inbound), port("probes", PROBES)],
            // Liveness depends on nothing but the process: neither on the store nor on upstreams.
            startup_probe: yaml(
                "{httpGet: {path: /readyz, port: probes}, periodSeconds: 1, failureThreshold: 60}",
            ),
            readiness_probe: yaml("{httpGet: {path: /readyz, port: probes}, periodSeconds: 5}"),
            liveness_probe: yaml("{httpGet: {path: /healthz, port: probes}, periodSeconds: 10}"),
            resources: Resources { requests: self.requests.clone(), limits: self.limits.clone() },
            security_context: yaml(
                "{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, \
                 runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: {type: RuntimeDefault}}",
            ),
            volume_mounts: mounted
                .then(|| yaml(&format!("{{name: {VOLUME}, mountPath: {MOUNTED}, readOnly: true}}")))
                .into_iter()
                .collect(),
        };
        serde_yaml::to_value(container).unwrap_or_default()
    }

    fn args(&self, stands: &Stands<'_>) -> Vec<String> {
        let store = match &self.store {
            Store::ConfigMap(_) => MOUNTED,
            Store::Shared(store) => store,
        };
        let mut args = vec!["run".to_owned(), format!("--store={store}")];
        args.extend(self.baseline.iter().map(|id| format!("--baseline={id}")));
        args.extend(self.environment.iter().map(|id| format!("--environment={id}")));
        args.push(format!("--service={}", stands.service));
        args.push(format!("--inbound=0.0.0.0:{}", stands.inbound));
        args.push(format!("--app={}", stands.app));
        args.extend(self.outbound.then(|| format!("--outbound=127.0.0.1:{OUTBOUND}")));
        args.push(format!("--probes=0.0.0.0:{PROBES}"));
        args
    }

    /// The volume that it mounts, if any.
    pub(super) fn volume(&self) -> Option<Value> {
        match &self.store {
            Store::ConfigMap(name) => {
                let mut volume = yaml(&format!("{{name: {VOLUME}, configMap: {{}}}}"));
                volume["configMap"]["name"] = name.as_str().into();
                Some(volume)
            }
            Store::Shared(_) => None,
        }
    }
}

/// The variables by which an application's calls go through its sidecar.
pub(super) fn proxy_variables() -> Vec<(&'static str, String)> {
    let proxy = format!("http://127.0.0.1:{OUTBOUND}");
    let direct = "127.0.0.1,localhost".to_owned();
    vec![
        ("HTTP_PROXY", proxy.clone()),
        ("http_proxy", proxy),
        ("NO_PROXY", direct.clone()),
        ("no_proxy", direct),
    ]
}

fn token(from: &Key) -> Value {
    let mut value = yaml("{name: OVERLANE_SERVER_TOKEN, valueFrom: {secretKeyRef: {}}}");
    value["valueFrom"]["secretKeyRef"]["name"] = from.secret.as_str().into();
    value["valueFrom"]["secretKeyRef"]["key"] = from.key.as_str().into();
    value
}

/// A value as it is written here.
fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or_default()
}
