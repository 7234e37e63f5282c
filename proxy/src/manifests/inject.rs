//! Gives workloads their sidecar: each that a Service leads to gets one before the port that the Service leads to.
//!
//! What was injected before is taken out first, so that doing it twice is doing it once, with whatever is told the last
//! time. All of that is found in the sidecar's own arguments, ports and names: nothing else remembers it.

use std::collections::BTreeSet;

use overlane_config::name::ServiceName;
use overlane_config::url::Url;
use serde_yaml::{Mapping, Value};

use super::files::{At, File, mapping};
use super::objects::{
    ContainerPort, Port, ServicePort, Speaks, container_ports, is_headless, leads_to, name, pod_path,
    service_ports, title,
};
use super::sidecar::{INBOUND, NAME, OWN, PROBES, Sidecar, Stands, VOLUME, proxy_variables};
use super::{Fields, Mistake};

/// Said of a workload, or of its pods: `"false"` leaves it alone.
const INJECT: &str = "overlane.dev/inject";
/// As annotation of pods, and as label of what is not called as its service is: the service.
pub(super) const SERVICE: &str = "overlane.dev/service";
/// As label of pods: the overlay whose instance they are.
pub(super) const OVERLAY: &str = "overlane.dev/overlay";
const ENVIRONMENT: &str = "overlane.dev/environment";
/// How long a sidecar takes at most to end, in seconds: its `lameDuck` and `drain` by default.
const DRAINED: u64 = 25;
/// The longest name of a port.
const PORT_NAME: usize = 15;

/// What is to be done with manifests.
#[derive(Debug)]
pub struct Injection {
    /// The sidecar that workloads get; without one, what they have is taken out.
    pub sidecar: Option<Sidecar>,
    /// Only the workloads of these Services; of all, where it is empty.
    pub services: Vec<String>,
    /// Which port of the Service, where it has several.
    pub port: Option<Port>,
}

/// Where an object is: the file, and the place in it.
pub(super) type Spot = (usize, At);

/// Changes the workloads and Services of files. What is said of each is returned.
///
/// # Errors
/// Every reason why that cannot be done; the files are good for nothing then.
pub fn inject(files: &mut [File], how: &Injection) -> Result<Vec<String>, Vec<Mistake>> {
    let (mut notes, mut done) = (Vec::new(), 0);
    let (mut mistakes, mut passed_by) = (unknown(files, &how.services), Vec::new());
    for workload in spots(files, |object| pod_path(object).is_some()) {
        let object = at(files, workload);
        let services = spots(files, |service| leads_to(service, object));
        if is_left_alone(object) {
            notes.push(format!("{}: left alone, by its annotation {INJECT}", title(object)));
            continue;
        }
        let chosen = |service: &&Spot| {
            how.services.is_empty() || how.services.iter().any(|wanted| wanted == name(at(files, **service)))
        };
        let wanted: Vec<_> = services.iter().filter(chosen).copied().collect();
        if wanted.is_empty() {
            continue;
        }
        let had = take_out(files, workload, &services);
        // Of what nobody asked for by its name, a database is no mistake.
        let passes_by =
            how.services.is_empty() && !wanted.iter().any(|service| may_speak_http(at(files, *service)));
        let Some(sidecar) = &how.sidecar else {
            notes.extend(had.then(|| format!("{}: its sidecar is taken out", title(at(files, workload)))));
            done += usize::from(had);
            continue;
        };
        match stand_before(files, workload, &wanted, how, sidecar) {
            Ok(said) => {
                notes.extend(said);
                done += 1;
            }
            Err(mistake) if passes_by => {
                notes.push(format!("left alone: {}", mistake.message));
                passed_by.push(mistake);
            }
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if done == 0 && mistakes.is_empty() {
        mistakes = passed_by;
        if mistakes.is_empty() {
            mistakes.push(nothing(files, how));
        }
    }
    if mistakes.is_empty() { Ok(notes) } else { Err(mistakes) }
}

pub(super) fn spots(files: &[File], which: impl Fn(&Value) -> bool) -> Vec<Spot> {
    let all = files
        .iter()
        .enumerate()
        .flat_map(|(file, content)| content.objects().map(move |(at, object)| ((file, at), object)));
    all.filter(|(_, object)| which(object)).map(|(spot, _)| spot).collect()
}

pub(super) fn at(files: &[File], (file, at): Spot) -> &Value {
    files[file].object(at)
}

/// The Services that are asked for, and are not there.
fn unknown(files: &[File], wanted: &[String]) -> Vec<Mistake> {
    let there = spots(files, |object| object.text("kind") == Some("Service"));
    let there: BTreeSet<_> = there.iter().map(|spot| name(at(files, *spot))).collect();
    let missing = wanted.iter().filter(|name| !there.contains(name.as_str()));
    let hint = match there.is_empty() {
        true => "give the file of the Service as well: `-f service.yaml`".to_owned(),
        false => format!("there are {}", there.iter().copied().collect::<Vec<_>>().join(", ")),
    };
    missing
        .map(|name| {
            Mistake::at("--service", format_args!("no Service `{name}` is in these files"), hint.clone())
        })
        .collect()
}

/// Nothing was done, and why.
fn nothing(files: &[File], how: &Injection) -> Mistake {
    let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
    let workloads = spots(files, |object| pod_path(object).is_some());
    let Some(first) = workloads.first() else {
        let hint = "give the file of a Deployment, StatefulSet, DaemonSet or Pod, and that of its Service";
        return Mistake::at(names.join(", "), "no workload in it", hint);
    };
    if how.sidecar.is_none() {
        return Mistake::at(
            names.join(", "),
            "no sidecar in it that could be taken out",
            "look whether these are the files",
        );
    }
    let what = "no Service of these files leads to it, so that nobody knows which port is the service's";
    Mistake::at(
        files[first.0].place(first.1),
        what,
        "give the Service as well (`-f service.yaml`), whose selector fits the labels of the pods",
    )
}

fn is_left_alone(workload: &Value) -> bool {
    let path = pod_path(workload).unwrap_or_default();
    let says = |of: Option<&Value>| {
        let value = of
            .and_then(|object| object.at("metadata.annotations"))
            .and_then(|annotations| annotations.get(INJECT));
        value.is_some_and(|value| value.as_str() == Some("false") || value.as_bool() == Some(false))
    };
    says(Some(workload)) || says(workload.at(path))
}

fn may_speak_http(service: &Value) -> bool {
    !is_headless(service)
        && service_ports(service).iter().any(|port| matches!(port.speaks, Speaks::Http { .. } | Speaks::H2c))
}

/// Where requests for a Service's port arrive in a pod.
struct Target {
    service: Spot,
    port: ServicePort,
    /// The application's port, as a container declares it, if one does.
    declared: Option<ContainerPort>,
    number: u16,
}

fn stand_before(
    files: &mut [File],
    workload: Spot,
    services: &[Spot],
    how: &Injection,
    sidecar: &Sidecar,
) -> Result<Vec<String>, Mistake> {
    let plan = plan(files, workload, services, how)?;
    let object = at(files, workload);
    let path = pod_path(object).unwrap_or_default();
    let sidecar = &of_its_environment(sidecar, object.at(path).unwrap_or(object));
    let mut notes = plan.said(files, object, sidecar.native);
    notes.extend(plan.also_led_there(files, object));
    notes.extend(ends_too_soon(object.at(path).unwrap_or(object)));
    plan.lead_to_sidecar(files);
    let object = files[workload.0].object_mut(workload.1);
    if let Some(pod) = object.at_mut(path) {
        if let (Port::Name(old), Some(declared)) = (&plan.target.port.target, &plan.target.declared) {
            rename(pod, declared, old, &renamed(old));
        }
        notes.extend(put_in(pod, sidecar.container(&plan.stands()), sidecar));
    }
    annotate(object, path, plan.service.as_str(), sidecar);
    Ok(notes)
}

/// Where a sidecar is to stand.
struct Plan {
    target: Target,
    /// What the service is called, which its Service need not be.
    service: ServiceName,
    /// Where the sidecar listens, and how that port is called.
    inbound: u16,
    port_name: String,
    app: Url,
}

fn plan(files: &[File], workload: Spot, services: &[Spot], how: &Injection) -> Result<Plan, Mistake> {
    let place = files[workload.0].place(workload.1);
    let object = at(files, workload);
    let pod = pod_path(object).and_then(|path| object.at(path)).unwrap_or(object);
    let ports = container_ports(pod);
    fits(&place, pod, &ports)?;
    let target = target(files, &place, services, &ports, how)?;
    let service = service_name(files, target.service)?;
    let inbound = (INBOUND..).find(|free| ports.iter().all(|port| port.number != *free)).unwrap_or(INBOUND);
    let scheme = target.port.speaks.scheme().unwrap_or("http");
    let app = format!("{scheme}://127.0.0.1:{}", target.number)
        .parse()
        .map_err(|why: String| Mistake::at(&place, why, "give the Service another target port"))?;
    let port_name = match &target.port.target {
        Port::Name(name) => name.clone(),
        Port::Number(_) if ports.iter().all(|port| port.name.as_deref() != Some("http")) => "http".to_owned(),
        Port::Number(_) => NAME.to_owned(),
    };
    Ok(Plan { target, service, inbound, port_name, app })
}

impl Plan {
    fn stands(&self) -> Stands<'_> {
        Stands { service: &self.service, inbound: self.inbound, port_name: &self.port_name, app: &self.app }
    }

    /// What somebody has to know of it.
    fn said(&self, files: &[File], workload: &Value, native: bool) -> Vec<String> {
        let service = name(at(files, self.target.service));
        let listens = self.target.number;
        let first = format!(
            "{}: Service {service} leads to its sidecar, and that to port {listens} of the application",
            title(workload)
        );
        let old = match (&self.target.port.target, native) {
            (Port::Number(_), _) => {
                let inbound = self.inbound;
                let second = format!(
                    "  the Service's target port is {inbound} now: until the new pods are there nobody listens on it. Give the port a name, first \
                     in the pods, then as `targetPort`, and nothing is interrupted"
                );
                return vec![first, second];
            }
            (Port::Name(old), true) => format!(
                "`{}`; before Kubernetes 1.32 Services do not find such ports of native sidecars: use `--no-native` there",
                renamed(old)
            ),
            (Port::Name(old), false) => format!("`{}`", renamed(old)),
        };
        vec![
            first,
            format!("  port `{}` is the sidecar's now, and the application's is {old}", self.port_name),
        ]
    }

    /// The other Services that lead to the port by its name, and so to the sidecar.
    fn also_led_there(&self, files: &[File], workload: &Value) -> Vec<String> {
        let Port::Name(port) = &self.target.port.target else { return Vec::new() };
        let named = |service: &Value| {
            service_ports(service).iter().any(|other| other.target == self.target.port.target)
        };
        let others = spots(files, |service| leads_to(service, workload) && named(service));
        let others =
            others.iter().filter(|spot| **spot != self.target.service).map(|spot| name(at(files, *spot)));
        let said = |other| {
            format!(
                "  Service {other} leads to port `{port}` as well, and so to the sidecar of {}",
                self.service
            )
        };
        others.map(said).collect()
    }

    /// Has the Service lead to the sidecar, where it does not by the port's name.
    fn lead_to_sidecar(&self, files: &mut [File]) {
        let Target { service: (file, at), port, .. } = &self.target;
        let ports = files[*file].object_mut(*at).items_mut("spec.ports");
        if let (Port::Number(_), Some(port)) =
            (&port.target, ports.and_then(|ports| ports.get_mut(port.index)))
        {
            port["targetPort"] = self.inbound.into();
        }
    }
}

/// Where a pod is killed while its sidecar may still be draining.
fn ends_too_soon(pod: &Value) -> Option<String> {
    let grace = pod.at("spec.terminationGracePeriodSeconds").and_then(Value::as_u64)?;
    (grace < DRAINED).then(|| {
        format!(
            "  its pods are killed after {grace} s (`terminationGracePeriodSeconds`), and the sidecar may take {DRAINED} s to drain"
        )
    })
}

/// The sidecar of a pod that says itself whose instance it is.
fn of_its_environment(sidecar: &Sidecar, pod: &Value) -> Sidecar {
    let labelled = || pod.at("metadata.labels")?.get(OVERLAY)?.as_str()?.parse().ok();
    Sidecar { environment: sidecar.environment.clone().or_else(labelled), ..sidecar.clone() }
}

/// The service that a Service is.
fn service_name(files: &[File], spot: Spot) -> Result<ServiceName, Mistake> {
    let service = at(files, spot);
    let labelled = service.at("metadata.labels").and_then(|labels| labels.get(SERVICE)?.as_str());
    let known = labelled.unwrap_or(name(service));
    known.parse().map_err(|why| {
        let what = format!("`{known}` is no name of a service: {why}");
        let hint = format!("say it with a label of the Service: `{SERVICE}: NAME`");
        Mistake::at(files[spot.0].place(spot.1), what, hint)
    })
}

/// Whether a sidecar can stand in the pod at all.
fn fits(place: &str, pod: &Value, ports: &[ContainerPort]) -> Result<(), Mistake> {
    if pod.at("spec.hostNetwork").and_then(Value::as_bool) == Some(true) {
        let hint = format!(
            "its ports are the node's, where only one sidecar could listen; run it without `hostNetwork`, or leave it alone: `{INJECT}: \"false\"`"
        );
        return Err(Mistake::at(place, "`hostNetwork: true`", hint));
    }
    let lists = ["spec.containers", "spec.initContainers"];
    if lists.iter().any(|list| pod.items(list).iter().any(|container| name_of(container) == NAME)) {
        let what = format!("it has a container `{NAME}` that is no sidecar of a service");
        return Err(Mistake::at(place, what, "rename it, or take it out"));
    }
    match ports.iter().find(|port| OWN.contains(&port.number)) {
        Some(port) => {
            let what = format!(
                "a container listens on port {}, and the sidecar keeps {} to {} for itself",
                port.number,
                OWN.start(),
                OWN.end()
            );
            Err(Mistake::at(place, what, "give that container another port"))
        }
        None => Ok(()),
    }
}

fn name_of(container: &Value) -> &str {
    container.text("name").unwrap_or_default()
}

/// Which port of which Service the sidecar stands before.
fn target(
    files: &[File],
    place: &str,
    services: &[Spot],
    declared: &[ContainerPort],
    how: &Injection,
) -> Result<Target, Mistake> {
    let (headless, others): (Vec<Spot>, Vec<Spot>) =
        services.iter().partition(|spot| is_headless(at(files, **spot)));
    let service = match others[..] {
        [one] => one,
        [] => {
            let what = format!(
                "the Service {} is headless: its clients choose the port themselves, and get past a sidecar",
                name(at(files, headless[0]))
            );
            return Err(Mistake::at(place, what, "give it a Service with an address of its own"));
        }
        _ => {
            let names: Vec<_> = others.iter().map(|spot| name(at(files, *spot))).collect();
            let what = format!("several Services lead to it: {}", names.join(", "));
            return Err(Mistake::at(
                place,
                what,
                format!("say which one its callers use: `--service {}`", names[0]),
            ));
        }
    };
    let at_service = files[service.0].place(service.1);
    let port = port(&at_service, &service_ports(at(files, service)), how.port.as_ref())?;
    let (declared, number) = match &port.target {
        Port::Number(number) => (declared.iter().find(|port| port.number == *number), *number),
        Port::Name(name) => {
            let mut named = declared.iter().filter(|port| port.name.as_ref() == Some(name));
            let Some(first) = named.next() else {
                let what = format!(
                    "the Service {} leads to a port `{name}`, and no container has one",
                    title_of(files, service)
                );
                return Err(Mistake::at(
                    place,
                    what,
                    "name the port in the container's `ports`, or give its number as `targetPort`",
                ));
            };
            if named.next().is_some() {
                let what = format!("several containers have a port `{name}`");
                return Err(Mistake::at(place, what, "give each port a name of its own"));
            }
            (Some(first), first.number)
        }
    };
    Ok(Target { service, declared: declared.cloned(), port, number })
}

fn title_of(files: &[File], spot: Spot) -> &str {
    name(at(files, spot))
}

/// The port of a Service that requests arrive at.
pub(super) fn port(
    place: &str,
    ports: &[ServicePort],
    wanted: Option<&Port>,
) -> Result<ServicePort, Mistake> {
    let shown = || {
        let shown = |port: &ServicePort| match &port.name {
            Some(name) => format!("{name} ({})", port.number),
            None => port.number.to_string(),
        };
        ports.iter().map(shown).collect::<Vec<_>>().join(", ")
    };
    let is = |port: &&ServicePort, wanted: &Port| match wanted {
        Port::Number(number) => port.number == *number,
        Port::Name(name) => port.name.as_ref() == Some(name),
    };
    let of_http: Vec<_> =
        ports.iter().filter(|port| matches!(port.speaks, Speaks::Http { .. } | Speaks::H2c)).collect();
    let said: Vec<_> =
        of_http.iter().filter(|port| port.speaks != Speaks::Http { said: false }).copied().collect();
    let found = match (wanted, &of_http[..], &said[..]) {
        (Some(wanted), ..) => ports.iter().find(|port| is(port, wanted)).ok_or_else(|| {
            Mistake::at(
                place,
                format_args!("it has no port `{wanted}`"),
                format!("its ports are {}", shown()),
            )
        })?,
        (None, [one], _) | (None, _, [one]) => one,
        (None, [], _) => {
            let what = match ports.iter().any(|port| port.speaks == Speaks::Tls) {
                true => "its application speaks TLS, and a sidecar reads only what is in the clear",
                false => "none of its ports speaks HTTP",
            };
            return Err(Mistake::at(
                place,
                what,
                "if one does, name it with `--port`, or say so in the Service: `appProtocol: http`",
            ));
        }
        (None, ..) => {
            let hint = format!(
                "name one with `--port {}`; its ports are {}",
                said.first().or(of_http.first()).map_or(80, |port| port.number),
                shown()
            );
            return Err(Mistake::at(place, "several of its ports may speak HTTP", hint));
        }
    };
    if found.speaks == Speaks::Tls {
        let what = "its application speaks TLS, and a sidecar reads only what is in the clear";
        let hint = "if it does not, say so in the Service: `appProtocol: http`";
        return Err(Mistake::at(place, what, hint));
    }
    Ok(found.clone())
}

/// How the application's port is called once the sidecar has its name.
fn renamed(port: &str) -> String {
    let mut name = format!("app-{port}");
    name.truncate(PORT_NAME);
    name.trim_end_matches('-').to_owned()
}

/// Gives a port of a container another name, also where its probes ask for it.
fn rename(pod: &mut Value, port: &ContainerPort, old: &str, new: &str) {
    let list = format!("spec.{}", port.list);
    let Some(container) = pod.items_mut(&list).and_then(|all| all.get_mut(port.container)) else { return };
    if let Some(declared) = container.items_mut("ports").and_then(|ports| ports.get_mut(port.index)) {
        declared["name"] = new.into();
    }
    for asking in
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"]
    {
        for how in ["httpGet", "tcpSocket"] {
            if let Some(asked) =
                container.at_mut(&format!("{asking}.{how}.port")).filter(|port| port.as_str() == Some(old))
            {
                *asked = new.into();
            }
        }
    }
}

/// Puts the sidecar into a pod, with its volume and the application's variables.
fn put_in(pod: &mut Value, container: Value, sidecar: &Sidecar) -> Vec<String> {
    let mut notes = Vec::new();
    if sidecar.outbound {
        for application in pod.items_mut("spec.containers").into_iter().flatten() {
            notes.extend(through_outbound(application));
        }
    }
    let Some(spec) = pod.at_mut("spec").and_then(Value::as_mapping_mut) else { return notes };
    let (key, before) = if sidecar.native { ("initContainers", "containers") } else { ("containers", "") };
    if let Some(containers) = list(spec, key, before) {
        // A native sidecar starts before everything that stands behind it.
        let place = if sidecar.native { 0 } else { containers.len() };
        containers.insert(place, container);
    }
    if let Some(volume) = sidecar.volume()
        && let Some(volumes) = list(spec, "volumes", "")
    {
        volumes.push(volume);
    }
    notes
}

/// A list of a mapping. Where it is not there, it is made, before another field if that is there.
fn list<'m>(fields: &'m mut Mapping, key: &str, before: &str) -> Option<&'m mut Vec<Value>> {
    if fields.get(key).is_none_or(|value| !value.is_sequence()) {
        fields.shift_remove(key);
        let new = (Value::from(key), Value::Sequence(Vec::new()));
        let mut all: Vec<_> = std::mem::take(fields).into_iter().collect();
        let place = all.iter().position(|(key, _)| key.as_str() == Some(before)).unwrap_or(all.len());
        all.insert(place, new);
        *fields = all.into_iter().collect();
    }
    fields.get_mut(key)?.as_sequence_mut()
}

/// Has a container's calls go through the sidecar.
fn through_outbound(container: &mut Value) -> Option<String> {
    let title = name_of(container).to_owned();
    let fields = container.as_mapping_mut()?;
    let env = list(fields, "env", "")?;
    let taken = env.iter().find(|entry| name_of(entry).eq_ignore_ascii_case("http_proxy"));
    if let Some(taken) = taken {
        return Some(format!(
            "  container {title} has {} already, which was left: its calls do not go through the sidecar",
            name_of(taken)
        ));
    }
    for (name, value) in proxy_variables() {
        env.push(entry(name, &value));
    }
    None
}

/// A variable of a container.
pub(super) fn entry(name: &str, value: &str) -> Value {
    Value::Mapping(
        [(Value::from("name"), Value::from(name)), (Value::from("value"), Value::from(value))]
            .into_iter()
            .collect(),
    )
}

/// What pods say to who scrapes them.
fn scraping() -> [(&'static str, String); 3] {
    [
        ("prometheus.io/scrape", "true".to_owned()),
        ("prometheus.io/port", PROBES.to_string()),
        ("prometheus.io/path", "/metrics".to_owned()),
    ]
}

fn annotate(workload: &mut Value, path: &str, service: &str, sidecar: &Sidecar) {
    let annotations = format!("{path}.metadata.annotations");
    let Some(annotations) = mapping(workload, annotations.trim_start_matches('.')) else { return };
    annotations.insert(SERVICE.into(), service.into());
    if let Some(environment) = &sidecar.environment {
        annotations.insert(ENVIRONMENT.into(), environment.as_str().into());
    }
    // An application that is scraped itself stays so: the sidecar's metrics are for a PodMonitor then.
    if annotations.keys().all(|key| !key.as_str().is_some_and(|key| key.starts_with("prometheus.io/"))) {
        for (key, value) in scraping() {
            annotations.insert(key.into(), value.into());
        }
    }
}

/// What a sidecar that stands there says of itself.
struct Former {
    inbound: u16,
    app: u16,
    port_name: String,
}

impl Former {
    fn of(container: &Value) -> Option<Self> {
        let argument = |name: &str| {
            container.items("args").iter().find_map(|argument| argument.as_str()?.strip_prefix(name))
        };
        let port = |address: &str| address.rsplit_once(':')?.1.parse().ok();
        if name_of(container) != NAME {
            return None;
        }
        let app: Url = argument("--app=")?.parse().ok()?;
        let port_name = container.items("ports").first()?.text("name")?.to_owned();
        Some(Self { inbound: port(argument("--inbound=")?)?, app: app.port, port_name })
    }
}

/// Takes a sidecar out, with all that came with it; whether there was one.
pub(super) fn take_out(files: &mut [File], workload: Spot, services: &[Spot]) -> bool {
    let object = files[workload.0].object_mut(workload.1);
    let path = pod_path(object).unwrap_or_default();
    let Some(former) = object.at_mut(path).and_then(take_out_of) else { return false };
    for (file, at) in services {
        for port in files[*file].object_mut(*at).items_mut("spec.ports").into_iter().flatten() {
            if port.at("targetPort").and_then(Value::as_u64) == Some(former.inbound.into()) {
                port["targetPort"] = former.app.into();
            }
        }
    }
    true
}

fn take_out_of(pod: &mut Value) -> Option<Former> {
    let lists = ["spec.initContainers", "spec.containers"];
    let former = lists.iter().find_map(|list| pod.items(list).iter().find_map(Former::of))?;
    for list in lists {
        retain(pod, list, |container| Former::of(container).is_none());
    }
    retain(pod, "spec.volumes", |volume| name_of(volume) != VOLUME);
    for container in pod.items_mut("spec.containers").into_iter().flatten() {
        retain(container, "env", |variable| {
            !proxy_variables().iter().any(|(name, value)| *variable == entry(name, value))
        });
    }
    let declared = container_ports(pod).into_iter().find(|port| port.number == former.app);
    if let Some(declared) = declared.filter(|port| port.name.as_deref() == Some(&renamed(&former.port_name)))
    {
        rename(pod, &declared, &renamed(&former.port_name), &former.port_name);
    }
    if let Some(annotations) = pod.at_mut("metadata.annotations").and_then(Value::as_mapping_mut) {
        let ours = annotations.get("prometheus.io/port").and_then(Value::as_str) == Some(&PROBES.to_string());
        let keep = |key: &str| {
            !(matches!(key, SERVICE | ENVIRONMENT) || ours && scraping().iter().any(|(name, _)| *name == key))
        };
        annotations.retain(|key, _| key.as_str().is_none_or(keep));
        if annotations.is_empty() {
            remove(pod, "metadata.annotations");
        }
    }
    Some(former)
}

/// Keeps some items of a list, and no list without items.
pub(super) fn retain(value: &mut Value, path: &str, keep: impl Fn(&Value) -> bool) {
    let Some(items) = value.items_mut(path) else { return };
    let before = items.len();
    items.retain(keep);
    if items.is_empty() && before > 0 {
        remove(value, path);
    }
}

/// Takes a field out.
pub(super) fn remove(value: &mut Value, path: &str) {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    if let Some(fields) = value.at_mut(parent).and_then(Value::as_mapping_mut) {
        fields.shift_remove(field);
    }
}
