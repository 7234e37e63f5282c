//! A baseline's blueprint of what is there: Kubernetes' Services, or those of a compose file. It is a first draft, with
//! comments where somebody has to look.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use overlane_config::blueprint::parse;
use overlane_config::diagnostic::Source;
use overlane_config::name::{EnvironmentId, ServiceName};
use serde_yaml::Value;

use super::Fields;
use super::files::File;
use super::inject::{at, spots};
use super::objects::{
    Port, ServicePort, Speaks, by_number, is_headless, leads_to, name, pod_path, service_ports, speaks,
};

/// A service that was found.
#[derive(Debug, Default)]
struct Found {
    name: String,
    /// Its host, as callers know it.
    host: String,
    image: Option<String>,
    depends_on: Vec<String>,
    /// What it listens on, the likeliest first.
    ports: Vec<(String, u16, Option<Speaks>)>,
    /// Hosts at the edge, and paths there.
    hosts: BTreeSet<String>,
    paths: BTreeSet<String>,
    /// Whether the outside reaches it, as far as is seen.
    outside: bool,
    /// What somebody has to know.
    remarks: Vec<String>,
    /// Why it is left out.
    left_out: Option<String>,
}

/// The blueprint of a baseline with the Services of Kubernetes' manifests.
#[must_use]
pub fn kubernetes(files: &[File], id: &EnvironmentId, namespace: &str) -> String {
    let mut found: Vec<_> = spots(files, |object| object.text("kind") == Some("Service"))
        .into_iter()
        .filter(|spot| {
            !(name(at(files, *spot)) == "kubernetes" && at(files, *spot).at("spec.selector").is_none())
        })
        .map(|spot| of_service(files, at(files, spot), namespace))
        .collect();
    for spot in spots(files, |object| matches!(object.text("kind"), Some("Ingress" | "HTTPRoute"))) {
        entrances(at(files, spot), namespace, &mut found);
    }
    let namespaces: BTreeSet<_> = found.iter().filter_map(|found| found.host.split('.').nth(1)).collect();
    let namespace = namespaces.first().copied().unwrap_or(namespace).to_owned();
    let overlays = |port: u16| format!("http://{{service}}-{{overlay}}.{namespace}.svc.cluster.local:{port}");
    draft(id, &found, overlays)
}

/// The blueprint of a baseline with the services of compose files.
#[must_use]
pub fn compose(files: &[File], id: &EnvironmentId) -> String {
    let mut found = Vec::new();
    for (_, document) in files.iter().flat_map(File::objects) {
        for (name, service) in document.at("services").and_then(Value::as_mapping).into_iter().flatten() {
            found.extend(name.as_str().map(|name| of_compose(name, service)));
        }
    }
    draft(id, &found, |port| format!("http://{{service}}-{{overlay}}:{port}"))
}

/// The name that a compose file gives to its project.
#[must_use]
pub fn project(files: &[File]) -> Option<&str> {
    files.iter().flat_map(File::objects).find_map(|(_, document)| document.text("name"))
}

fn of_service(files: &[File], service: &Value, namespace: &str) -> Found {
    let namespace = service.text("metadata.namespace").unwrap_or(namespace);
    let kind = service.text("spec.type").unwrap_or("ClusterIP");
    let workloads = spots(files, |object| leads_to(service, object));
    let pod = workloads.first().and_then(|spot| at(files, *spot).at(pod_path(at(files, *spot))?));
    let mut found = Found {
        name: name(service).to_owned(),
        host: format!("{}.{namespace}.svc.cluster.local", name(service)),
        image: pod.and_then(|pod| pod.items("spec.containers").first()?.text("image")).map(str::to_owned),
        outside: matches!(kind, "LoadBalancer" | "NodePort"),
        ports: service_ports(service).iter().map(|port| listed(port, is_headless(service))).collect(),
        ..Found::default()
    };
    if kind == "ExternalName" {
        found.left_out = Some(format!(
            "it is {} outside of the cluster",
            service.text("spec.externalName").unwrap_or("a name")
        ));
    }
    if is_headless(service) {
        found
            .remarks
            .push("headless: its name leads to the pods themselves, of which one is chosen".to_owned());
    }
    found
}

/// A port as callers reach it: those of a headless Service at the pod itself.
fn listed(port: &ServicePort, headless: bool) -> (String, u16, Option<Speaks>) {
    let number = match port.target {
        Port::Number(number) if headless => number,
        _ => port.number,
    };
    (port.name.clone().unwrap_or_default(), number, Some(port.speaks))
}

/// What an Ingress or an HTTPRoute leads to services.
fn entrances(route: &Value, namespace: &str, found: &mut [Found]) {
    let here = route.text("metadata.namespace").unwrap_or(namespace);
    let mut lead = |service: Option<&str>, host: Option<&str>, path: Option<&str>| {
        let Some(service) = service else { return };
        let prefix = format!("{service}.{here}.");
        if let Some(found) = found.iter_mut().find(|found| found.host.starts_with(&prefix)) {
            found.outside = true;
            found.hosts.extend(host.map(str::to_owned));
            found.paths.insert(path.unwrap_or("/").to_owned());
        }
    };
    lead(route.text("spec.defaultBackend.service.name"), None, None);
    for rule in route.items("spec.rules") {
        for path in rule.items("http.paths") {
            lead(path.text("backend.service.name"), rule.text("host"), path.text("path"));
        }
        let hostnames: Vec<_> = route.items("spec.hostnames").iter().map(Value::as_str).collect();
        let hostnames = if hostnames.is_empty() { vec![None] } else { hostnames };
        let matches = rule.items("matches").iter().map(|one| one.text("path.value"));
        let matches: Vec<_> = if rule.items("matches").is_empty() { vec![None] } else { matches.collect() };
        for backend in rule.items("backendRefs") {
            for host in &hostnames {
                matches.iter().for_each(|path| lead(backend.text("name"), *host, *path));
            }
        }
    }
}

fn of_compose(name: &str, service: &Value) -> Found {
    let image = service.text("image").map(str::to_owned);
    let published: Vec<_> = service.items("ports").iter().filter_map(published).collect();
    let exposed = service.items("expose").iter().filter_map(|port| {
        let text = port
            .as_str()
            .map_or_else(|| port.as_u64().map(|number| number.to_string()), |text| Some(text.to_owned()));
        let (number, protocol) = split_protocol(text.as_deref()?);
        Some((number.parse().ok()?, protocol.to_owned(), None))
    });
    let mut ports: Vec<(String, u16, Option<Speaks>)> = Vec::new();
    for (number, protocol, app) in published.iter().cloned().chain(exposed) {
        let known = image.as_deref().is_some_and(speaks_no_http);
        let spoken = if known { Speaks::Other } else { speaks(&protocol, app.as_deref(), None, number) };
        if number > 0 && ports.iter().all(|(_, other, _)| *other != number) {
            ports.push((String::new(), number, Some(spoken)));
        }
    }
    let depends_on = match service.at("depends_on") {
        Some(Value::Mapping(all)) => all.keys().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => service.items("depends_on").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
    };
    let left_out = ports.is_empty().then(|| match image.as_deref().is_some_and(speaks_no_http) {
        true => "it speaks no HTTP".to_owned(),
        false => "no port is said; if it serves HTTP: `expose: [\"8080\"]` there".to_owned(),
    });
    Found {
        name: name.to_owned(),
        host: name.to_owned(),
        image,
        depends_on,
        outside: !published.is_empty(),
        ports,
        left_out,
        ..Found::default()
    }
}

/// A published port: its number inside, its protocol, and what it says that it speaks.
fn published(port: &Value) -> Option<(u16, String, Option<String>)> {
    if let Some(target) = port.at("target") {
        let protocol = port.text("protocol").unwrap_or("tcp").to_owned();
        return Some((
            u16::try_from(target.as_u64()?).ok()?,
            protocol,
            port.text("app_protocol").map(str::to_owned),
        ));
    }
    let text = port.as_str().map(str::to_owned).or_else(|| Some(port.as_u64()?.to_string()))?;
    let (ports, protocol) = split_protocol(&text);
    let inside = ports.rsplit(':').next()?;
    // Of a range the first.
    Some((inside.split('-').next()?.parse().ok()?, protocol.to_owned(), None))
}

fn split_protocol(port: &str) -> (&str, &str) {
    port.split_once('/').unwrap_or((port, "tcp"))
}

/// Whether an image is that of a well-known server that speaks no HTTP.
fn speaks_no_http(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image).split([':', '@']).next().unwrap_or(image);
    [
        "postgres",
        "postgis",
        "mysql",
        "mariadb",
        "redis",
        "valkey",
        "memcached",
        "mongo",
        "rabbitmq",
        "kafka",
        "cp-kafka",
        "zookeeper",
        "nats",
        "eclipse-mosquitto",
        "cassandra",
        "cockroach",
    ]
    .contains(&name)
}

/// The blueprint as text. Its first lines say what it is.
fn draft(id: &EnvironmentId, found: &[Found], overlays: impl Fn(u16) -> String) -> String {
    let mut services = String::new();
    let mut used: BTreeMap<u16, usize> = BTreeMap::new();
    let (mut names, mut entrances) = (BTreeSet::new(), BTreeSet::new());
    for service in found {
        match routed(service, &mut names) {
            Ok(port) => {
                *used.entry(port.1).or_default() += 1;
                entry(&mut services, service, port, &mut entrances);
            }
            Err(why) => writeln!(services, "  # {}: {why}", service.name).unwrap_or_default(),
        }
    }
    let mut text = format!(
        "# A first draft of a baseline, by `overlane import`: look at what has a comment.\nname: {}\nrouting:\n  mode: baseline\n",
        scalar(id.as_str())
    );
    if let Some((port, _)) = used.iter().max_by_key(|(port, count)| (**count, std::cmp::Reverse(**port))) {
        let _ = write!(
            text,
            "  # Where an overlay's services are that give no url; `overlane overlay render` makes Services of these names.\n  overlayUrl: \"{}\"\n",
            overlays(*port)
        );
    }
    match used.is_empty() {
        true => text.push_str("services: []\n"),
        false => text.push_str("services:\n"),
    }
    text + &services
}

/// The port of a service that is routed, or why none is.
fn routed<'f>(
    service: &'f Found,
    names: &mut BTreeSet<String>,
) -> Result<&'f (String, u16, Option<Speaks>), String> {
    if let Some(why) = &service.left_out {
        return Err(why.clone());
    }
    if let Err(why) = service.name.parse::<ServiceName>() {
        return Err(format!("that is no name of a service here: {why}"));
    }
    let rank = |port: &&(String, u16, Option<Speaks>)| match port.2.unwrap_or(by_number(port.1)) {
        Speaks::Http { said: true } | Speaks::H2c => 0,
        Speaks::Http { said: false } => 1,
        Speaks::Tls => 2,
        Speaks::Other => 3,
    };
    let best = service.ports.iter().min_by_key(rank).filter(|port| rank(port) < 3);
    let Some(best) = best else {
        let ports: Vec<_> = service.ports.iter().map(|port| port.1.to_string()).collect();
        return Err(match ports.is_empty() {
            true => "it has no port".to_owned(),
            false => format!("port {} speaks no HTTP; calls to it pass by", ports.join(", ")),
        });
    };
    if !names.insert(service.name.clone()) {
        return Err(format!("another service has this name; this one is {}", service.host));
    }
    Ok(best)
}

/// Writes a service.
fn entry(
    text: &mut String,
    service: &Found,
    port: &(String, u16, Option<Speaks>),
    entrances: &mut BTreeSet<(String, String)>,
) {
    let spoken = port.2.unwrap_or(by_number(port.1));
    let _ = writeln!(text, "  - name: {}", scalar(&service.name));
    let mut remarks = service.remarks.clone();
    let others: Vec<_> = service.ports.iter().filter(|other| other.1 != port.1).map(shown).collect();
    if !others.is_empty() {
        remarks.push(format!("it has other ports as well, which are not routed: {}", others.join(", ")));
    }
    match spoken {
        Speaks::Http { said: false } if !matches!(port.1, 80 | 8080) => {
            remarks.push("nobody says that it speaks HTTP; if it does not, take it out".to_owned());
        }
        Speaks::Tls => remarks.push(
            "it speaks TLS: proxies have to know who issued its certificate (`upstreamTls`)".to_owned(),
        ),
        _ => {}
    }
    for remark in remarks {
        let _ = writeln!(text, "    # {remark}");
    }
    let scheme = spoken.scheme().unwrap_or("http");
    let _ = writeln!(text, "    url: {scheme}://{}:{}", service.host, port.1);
    if let Some(image) = &service.image {
        let _ = writeln!(text, "    image: {}", scalar(image));
    }
    if !service.depends_on.is_empty() {
        let names: Vec<_> = service.depends_on.iter().map(|name| scalar(name)).collect();
        let _ = writeln!(text, "    dependsOn: [{}]", names.join(", "));
    }
    if service.outside {
        expose(text, service, entrances);
    }
}

fn shown(port: &(String, u16, Option<Speaks>)) -> String {
    if port.0.is_empty() { port.1.to_string() } else { format!("{} ({})", port.0, port.1) }
}

/// Writes where the gateway leads to a service: once for each host and path.
fn expose(text: &mut String, service: &Found, entrances: &mut BTreeSet<(String, String)>) {
    let (hosts, odd): (Vec<_>, Vec<_>) =
        service.hosts.iter().partition(|host| is_right("hosts", &format!("[{}]", scalar(host))));
    let mut paths = service.paths.iter().filter(|path| is_right("path", &scalar(path)));
    let path = paths.next().map_or("/", |path| path.trim_end_matches('/'));
    let path = if path.is_empty() { "/" } else { path };
    for host in odd {
        let _ = writeln!(text, "    # the host {host} is left out: a gateway knows whole names only");
    }
    for other in
        service.paths.iter().filter(|other| other.trim_end_matches('/') != path.trim_end_matches('/'))
    {
        let _ = writeln!(text, "    # it is at {other} as well, and a service has one path here");
    }
    let wanted: Vec<_> =
        if hosts.is_empty() { vec![String::new()] } else { hosts.into_iter().cloned().collect() };
    let free: Vec<_> = wanted
        .into_iter()
        .filter(|host| entrances.insert((host.to_ascii_lowercase(), path.to_owned())))
        .collect();
    if free.is_empty() {
        let _ = writeln!(text, "    # expose: true is left out: another service is exposed there already");
        return;
    }
    let _ = writeln!(text, "    expose: true");
    if !free[0].is_empty() {
        let _ = writeln!(
            text,
            "    hosts: [{}]",
            free.iter().map(|host| scalar(host)).collect::<Vec<_>>().join(", ")
        );
    }
    if path != "/" {
        let _ = writeln!(text, "    path: {}", scalar(path));
    }
}

/// Whether a field of a service may be so, as the reader of blueprints has it.
fn is_right(field: &str, value: &str) -> bool {
    let text =
        format!("name: a\nrouting: {{mode: baseline}}\nservices:\n  - name: a\n    {field}: {value}\n");
    parse(&Arc::new(Source::new("(draft)".into(), text, None))).diagnostics.is_empty()
}

/// A text as YAML has it on one line, also in brackets.
fn scalar(text: &str) -> String {
    match serde_yaml::to_string(text) {
        Ok(plain) if !plain.trim_end().contains(['\n', ',', '[', ']', '{', '}', '#']) => {
            plain.trim_end().to_owned()
        }
        _ => serde_json::to_string(text).unwrap_or_default(),
    }
}
