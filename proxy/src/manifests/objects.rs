//! What is known of Kubernetes' objects: where a workload's pods are described, and which Services lead to them.

use std::fmt;

use serde_yaml::Value;

use super::Fields;

/// The path to the pod in a workload, if the object is one that runs pods: to what has `metadata` and `spec` of them.
pub(super) fn pod_path(object: &Value) -> Option<&'static str> {
    match object.text("kind")? {
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Rollout" => {
            Some("spec.template")
        }
        "Pod" => Some(""),
        _ => None,
    }
}

pub(super) fn name(object: &Value) -> &str {
    object.text("metadata.name").unwrap_or_default()
}

/// `Deployment payments-api`.
pub(super) fn title(object: &Value) -> String {
    format!("{} {}", object.text("kind").unwrap_or("object"), name(object))
}

/// Whether both are in one namespace; an object that names none is in that of the others.
pub(super) fn same_namespace(one: &Value, other: &Value) -> bool {
    let namespace = |object: &Value| object.text("metadata.namespace").map(str::to_owned);
    match (namespace(one), namespace(other)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
}

/// Whether a Service selects pods with these labels.
pub(super) fn selects(service: &Value, labels: Option<&Value>) -> bool {
    let Some(selector) =
        service.at("spec.selector").and_then(Value::as_mapping).filter(|all| !all.is_empty())
    else {
        return false;
    };
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether a Service leads to the pods of a workload.
pub(super) fn leads_to(service: &Value, workload: &Value) -> bool {
    let Some(path) = pod_path(workload) else { return false };
    service.text("kind") == Some("Service")
        && service.text("spec.type") != Some("ExternalName")
        && same_namespace(service, workload)
        && selects(service, workload.at(path).and_then(|pod| pod.at("metadata.labels")))
}

/// Whether clients of a Service get the pods' own addresses, and choose the port themselves.
pub(super) fn is_headless(service: &Value) -> bool {
    service.text("spec.clusterIP") == Some("None")
}

/// A port by its number or its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// Its number.
    Number(u16),
    /// Its name.
    Name(String),
}

impl Port {
    pub(super) fn of(value: &Value) -> Option<Self> {
        let number = value.as_u64().and_then(|number| u16::try_from(number).ok()).map(Self::Number);
        number.or_else(|| value.as_str()?.parse().ok())
    }

    /// As Kubernetes writes it.
    pub(super) fn value(&self) -> Value {
        match self {
            Self::Number(number) => (*number).into(),
            Self::Name(name) => name.as_str().into(),
        }
    }
}

impl std::str::FromStr for Port {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Number))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A port of a Service.
#[derive(Debug, Clone)]
pub(super) struct ServicePort {
    /// Which of the Service's ports.
    pub(super) index: usize,
    pub(super) name: Option<String>,
    pub(super) number: u16,
    pub(super) target: Port,
    pub(super) speaks: Speaks,
}

/// What a port speaks, as its `appProtocol`, else its name, else its number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP, or nobody says so and nothing is against it.
    Http { said: bool },
    /// HTTP/2 in the clear.
    H2c,
    /// TLS.
    Tls,
    /// Something else, or UDP.
    Other,
}

impl Speaks {
    /// The scheme of its urls; `None` where there is none.
    pub(super) fn scheme(self) -> Option<&'static str> {
        match self {
            Self::Http { .. } => Some("http"),
            Self::H2c => Some("h2c"),
            Self::Tls => Some("https"),
            Self::Other => None,
        }
    }
}

/// The ports of a Service.
pub(super) fn service_ports(service: &Value) -> Vec<ServicePort> {
    let port = |(index, port): (usize, &Value)| {
        let number = u16::try_from(port.at("port")?.as_u64()?).ok().filter(|number| *number > 0)?;
        let name = port.text("name").map(str::to_owned);
        let target = port.at("targetPort").and_then(Port::of).unwrap_or(Port::Number(number));
        let protocol = port.text("protocol").unwrap_or("TCP");
        let speaks = speaks(protocol, port.text("appProtocol"), name.as_deref(), number);
        Some(ServicePort { index, name, number, target, speaks })
    };
    service.items("spec.ports").iter().enumerate().filter_map(port).collect()
}

/// What is spoken at a port, as far as somebody says so.
pub(super) fn speaks(protocol: &str, app: Option<&str>, name: Option<&str>, number: u16) -> Speaks {
    if !protocol.eq_ignore_ascii_case("TCP") {
        return Speaks::Other;
    }
    let said = app.map(|app| app.rsplit('/').next().unwrap_or(app)).or(name.map(first_word));
    match said.map(str::to_ascii_lowercase).as_deref() {
        Some("h2c" | "http2" | "grpc") => Speaks::H2c,
        Some("https" | "wss" | "tls") => Speaks::Tls,
        Some("http" | "ws" | "web") => Speaks::Http { said: true },
        Some(
            "tcp" | "udp" | "sctp" | "postgres" | "postgresql" | "mysql" | "redis" | "mongo" | "mongodb"
            | "kafka" | "amqp" | "nats" | "mqtt" | "smtp" | "ldap" | "ssh" | "dns" | "jmx" | "epmd",
        ) => Speaks::Other,
        _ => by_number(number),
    }
}

/// `http-web` is `http`, as Istio's names of ports have it.
fn first_word(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

/// What is at a well-known port.
pub(super) fn by_number(number: u16) -> Speaks {
    match number {
        443 | 8443 | 9443 => Speaks::Tls,
        22 | 25 | 53 | 389 | 465 | 587 | 636 | 1433 | 1521 | 1883 | 2181 | 3306 | 4222 | 5432 | 5671
        | 5672 | 6379 | 6380 | 8883 | 9042 | 9092 | 9093 | 11211 | 26257 | 27017 => Speaks::Other,
        _ => Speaks::Http { said: false },
    }
}

/// The names of the lists of containers in a pod whose ports a Service can lead to, in the order in which Kubernetes looks.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// A port that a container of a pod declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerPort {
    /// `containers` or `initContainers`.
    pub(super) list: &'static str,
    /// Which container of the list.
    pub(super) container: usize,
    /// Which port of the container.
    pub(super) index: usize,
    pub(super) name: Option<String>,
    pub(super) number: u16,
}

/// The ports that the containers of a pod declare, those of native sidecars last.
pub(super) fn container_ports(pod: &Value) -> Vec<ContainerPort> {
    let mut ports = Vec::new();
    for list in CONTAINERS {
        for (container, value) in pod.items(&format!("spec.{list}")).iter().enumerate() {
            for (index, port) in value.items("ports").iter().enumerate() {
                let number = port
                    .at("containerPort")
                    .and_then(Value::as_u64)
                    .and_then(|number| u16::try_from(number).ok());
                let name = port.text("name").map(str::to_owned);
                ports.extend(number.map(|number| ContainerPort { list, container, index, name, number }));
            }
        }
    }
    ports
}
