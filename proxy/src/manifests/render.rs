//! An overlay's own instances, made of the baseline's manifests: the workload and the Service of each of its services, so
//! that they stand beside those of the baseline and nobody reaches them but by the overlay.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::url::Url;
use serde_yaml::{Mapping, Value};

use super::files::File;
use super::inject::{Injection, OVERLAY, SERVICE, Spot, at, entry, inject, port, remove, spots, take_out};
use super::objects::{
    Port, ServicePort, container_ports, leads_to, name, pod_path, same_namespace, selects, service_ports,
    title,
};
use super::sidecar::Sidecar;
use super::{Fields, Mistake};

/// The longest name of a Service, and value of a label.
const LONGEST: usize = 63;

/// An overlay, as far as its instances are concerned.
#[derive(Debug)]
pub struct Overlay<'a> {
    /// Its id.
    pub id: &'a EnvironmentId,
    /// Its services.
    pub services: Vec<Changed>,
    /// The namespace of its objects, where no address of a service says it; the baseline's where it is not told.
    pub namespace: Option<&'a str>,
    /// The sidecar before each.
    pub sidecar: &'a Sidecar,
}

/// What an overlay changes of a service.
#[derive(Debug)]
pub struct Changed {
    /// The service.
    pub name: ServiceName,
    /// Where it is written.
    pub place: String,
    /// Where proxies look for it, if anybody says so.
    pub url: Option<Url>,
    /// Its image.
    pub image: Option<String>,
    /// Variables, which replace those of the same name.
    pub env: Vec<Value>,
    /// Other fields of the container: `command`, `args`.
    pub fields: Vec<(&'static str, Value)>,
}

/// What was made.
#[derive(Debug, Default)]
pub struct Rendered {
    /// The objects, in the order in which they are to be applied.
    pub objects: Vec<Value>,
    /// What is said of them.
    pub notes: Vec<String>,
}

/// Makes the objects of an overlay's services of those of the baseline.
///
/// # Errors
/// Every reason why one cannot be made.
pub fn render(files: &[File], overlay: &Overlay<'_>) -> Result<Rendered, Vec<Mistake>> {
    let (mut rendered, mut mistakes) = (Rendered::default(), Vec::new());
    for changed in &overlay.services {
        match one(files, overlay, changed) {
            Ok(made) => {
                let new = made
                    .objects
                    .into_iter()
                    .filter(|object| !rendered.objects.contains(object))
                    .collect::<Vec<_>>();
                rendered.objects.extend(new);
                rendered.notes.extend(made.notes);
            }
            Err(found) => mistakes.extend(found),
        }
    }
    if mistakes.is_empty() { Ok(rendered) } else { Err(mistakes) }
}

/// Where a service's own objects are, and what is at its address.
struct Stand {
    name: String,
    namespace: Option<String>,
    port: Option<u16>,
}

fn one(files: &[File], overlay: &Overlay<'_>, changed: &Changed) -> Result<Rendered, Vec<Mistake>> {
    let one = |mistake| vec![mistake];
    let (workload, service) = baselines(files, changed).map_err(one)?;
    let (from_workload, from_service) = (at(files, workload), at(files, service));
    let stand = stand(overlay, changed, from_service).map_err(one)?;
    let place = format!("{}, copied for {}", files[workload.0].place(workload.1), overlay.id);
    let mut copy = [File::made(place, vec![from_workload.clone(), from_service.clone()])];
    let (new_workload, new_service) = ((0, copy[0].nth(0)), (0, copy[0].nth(1)));
    take_out(&mut copy, new_workload, &[new_service]);

    let mut notes = Vec::new();
    let own = own_labels(overlay, changed);
    let chosen = port(copy[0].name.as_str(), &service_ports(at(&copy, new_service)), None).map_err(one)?;
    let replaced = (selecting(files, from_workload), label(overlay, changed));
    let object = copy[0].object_mut(new_workload.1);
    let path = pod_path(object).unwrap_or_default();
    let listens = number(object.at(path), &chosen.target);
    change(object, path, changed, &chosen.target).map_err(one)?;
    notes.extend(detach(object, path));
    relabel(object, path, &stand, &replaced, &own);
    let labels = object.at(path).and_then(|pod| pod.at("metadata.labels")).cloned();
    select_own(object, &stand, &own);
    clean_service(copy[0].object_mut(new_service.1), &stand, &own, &chosen, listens);
    if let Some(other) = spots(files, |other| {
        let near = is_elsewhere(&stand, from_service) != Some(true) && same_namespace(other, from_service);
        other.text("kind") == Some("Service") && near && selects(other, labels.as_ref())
    })
    .first()
    {
        let what = format!("{} would select the pods of {}", title(at(files, *other)), overlay.id);
        return Err(one(Mistake::at(
            &copy[0].name,
            what,
            "have its selector ask for a label that its pods have of their own",
        )));
    }

    let url = stand.port.unwrap_or(chosen.number);
    let how = Injection {
        sidecar: Some(overlay.sidecar.clone()),
        services: Vec::new(),
        port: Some(Port::Number(url)),
    };
    inject(&mut copy, &how)?;
    let elsewhere = is_elsewhere(&stand, from_workload);
    let mut objects = Vec::new();
    if let Some(namespace) = &stand.namespace {
        // One that may be the baseline's own is not made.
        if elsewhere == Some(true) || namespace == overlay.id.as_str() {
            objects.push(namespace_object(namespace, &own));
        }
        if elsewhere != Some(false) {
            notes.extend(needs(at(&copy, new_workload), path, namespace));
        }
    }
    objects.extend([new_workload, new_service].map(|spot| at(&copy, spot).clone()));
    notes.insert(
        0,
        said(overlay, changed, &stand, from_workload, chosen.speaks.scheme().unwrap_or("http"), url),
    );
    Ok(Rendered { objects, notes })
}

/// The baseline's workload and Service of a service.
fn baselines(files: &[File], changed: &Changed) -> Result<(Spot, Spot), Mistake> {
    let wanted = changed.name.as_str();
    let services = spots(files, |object| object.text("kind") == Some("Service") && name(object) == wanted);
    let service = match services[..] {
        [one] => one,
        [] => {
            let there: BTreeSet<_> = spots(files, |object| object.text("kind") == Some("Service"))
                .iter()
                .map(|spot| name(at(files, *spot)).to_owned())
                .collect();
            let there = if there.is_empty() {
                "no Service".to_owned()
            } else {
                there.into_iter().collect::<Vec<_>>().join(", ")
            };
            let hint =
                format!("give the baseline's manifests with `--from`; in these files there is {there}");
            return Err(Mistake::at(
                &changed.place,
                format_args!("no Service `{wanted}` of the baseline"),
                hint,
            ));
        }
        [first, ..] => {
            let hint = "give only the manifests of the baseline's namespace: `kubectl -n NAMESPACE get deployments,services -o yaml`";
            return Err(Mistake::at(
                files[first.0].place(first.1),
                "there is another Service of this name",
                hint,
            ));
        }
    };
    let workloads = spots(files, |object| {
        matches!(object.text("kind"), Some("Deployment" | "StatefulSet"))
            && leads_to(at(files, service), object)
    });
    match workloads[..] {
        [one] => Ok((one, service)),
        [] => {
            let hint = "give the Deployment or StatefulSet as well, with `--from`; its pods have the labels that the Service selects";
            Err(Mistake::at(
                files[service.0].place(service.1),
                "it leads to no Deployment or StatefulSet of these files",
                hint,
            ))
        }
        [first, second, ..] => {
            let what = format!("it leads to {} and {}", title(at(files, first)), title(at(files, second)));
            Err(Mistake::at(
                files[service.0].place(service.1),
                what,
                "give only the one to copy with `--from`",
            ))
        }
    }
}

/// Where the objects are to be, so that proxies find them at the service's address.
fn stand(overlay: &Overlay<'_>, changed: &Changed, service: &Value) -> Result<Stand, Mistake> {
    let namespace = overlay.namespace.or(service.text("metadata.namespace")).map(str::to_owned);
    let Some(url) = &changed.url else {
        let name = format!("{}-{}", changed.name, overlay.id);
        if name.len() > LONGEST {
            let what = format!("`{name}` is too long for the name of a Service");
            return Err(Mistake::at(
                &changed.place,
                what,
                format!("give the service a `url` with a shorter name: at most {LONGEST} characters"),
            ));
        }
        return Ok(Stand { name, namespace, port: None });
    };
    let Some((name, said)) = in_cluster(url) else {
        let what = format!("{} is at {url}, where no Service of a cluster can be", changed.name);
        let hint = "give it a `url` such as http://NAME.NAMESPACE.svc.cluster.local:8080, or none";
        return Err(Mistake::at(&changed.place, what, hint));
    };
    let namespace = said.map(str::to_owned).or(namespace);
    let stand = Stand { name: name.to_owned(), namespace, port: Some(url.port) };
    if stand.name == changed.name.as_str() && is_elsewhere(&stand, service) == Some(false) {
        let what = format!("{} is at {url}, where the baseline's is", changed.name);
        return Err(Mistake::at(&changed.place, what, "give it a `url` of its own, or none"));
    }
    Ok(stand)
}

/// The name and the namespace in the address of a Service.
fn in_cluster(url: &Url) -> Option<(&str, Option<&str>)> {
    if url.host.parse::<IpAddr>().is_ok() || &*url.host == "localhost" || url.port == 0 {
        return None;
    }
    let mut labels = url.host.split('.');
    let (name, namespace) = (labels.next()?, labels.next());
    matches!(labels.next(), None | Some("svc")).then_some((name, namespace))
}

/// Whether the stand is in another namespace than an object of the baseline; `None` where that object does not say its own.
fn is_elsewhere(stand: &Stand, object: &Value) -> Option<bool> {
    match (&stand.namespace, object.text("metadata.namespace")) {
        (Some(one), Some(other)) => Some(one != other),
        (Some(_), None) => None,
        // Whoever names none applies both to one.
        (None, _) => Some(false),
    }
}

/// What takes the place of labels that others select by.
fn label(overlay: &Overlay<'_>, changed: &Changed) -> String {
    let label = format!("{}-{}", changed.name, overlay.id);
    if label.len() > LONGEST { overlay.id.to_string() } else { label }
}

fn own_labels(overlay: &Overlay<'_>, changed: &Changed) -> Vec<(Value, Value)> {
    vec![(OVERLAY.into(), overlay.id.as_str().into()), (SERVICE.into(), changed.name.as_str().into())]
}

/// The labels that anybody selects the baseline's pods by.
fn selecting(files: &[File], workload: &Value) -> BTreeSet<String> {
    let services = spots(files, |service| leads_to(service, workload));
    let of_services = services.iter().filter_map(|spot| at(files, *spot).at("spec.selector"));
    let mut keys: BTreeSet<String> =
        of_services.chain(workload.at("spec.selector.matchLabels")).flat_map(keys).collect();
    let expressions = workload.items("spec.selector.matchExpressions").iter();
    keys.extend(expressions.filter_map(|expression| expression.text("key").map(str::to_owned)));
    keys
}

fn keys(mapping: &Value) -> Vec<String> {
    mapping
        .as_mapping()
        .into_iter()
        .flat_map(Mapping::keys)
        .filter_map(|key| key.as_str().map(str::to_owned))
        .collect()
}

/// Makes the overlay's changes to the container of the service.
fn change(workload: &mut Value, path: &str, changed: &Changed, target: &Port) -> Result<(), Mistake> {
    let title = title(workload);
    let Some(pod) = workload.at_mut(path) else { return Ok(()) };
    let ports = container_ports(pod);
    let by_port = ports.iter().find(|port| match target {
        Port::Number(number) => port.number == *number,
        Port::Name(name) => port.name.as_ref() == Some(name),
    });
    let Some(containers) = pod.items_mut("spec.containers") else { return Ok(()) };
    let called =
        containers.iter().position(|container| container.text("name") == Some(changed.name.as_str()));
    let place = by_port.filter(|port| port.list == "containers").map(|port| port.container).or(called);
    let Some(place) = place.or((containers.len() == 1).then_some(0)) else {
        let names: Vec<_> = containers.iter().filter_map(|container| container.text("name")).collect();
        let what = format!("nothing says which container of {title} is the service: {}", names.join(", "));
        return Err(Mistake::at(
            &changed.place,
            what,
            "declare the port that the Service leads to in the container's `ports`",
        ));
    };
    let container = &mut containers[place];
    if let Some(image) = &changed.image {
        container["image"] = image.as_str().into();
    }
    for (field, value) in &changed.fields {
        container[*field] = value.clone();
    }
    for variable in &changed.env {
        set(container, variable);
    }
    Ok(())
}

/// Sets a variable of a container.
fn set(container: &mut Value, variable: &Value) {
    if container.at("env").is_none_or(Value::is_null) {
        container["env"] = Value::Sequence(Vec::new());
    }
    let Some(env) = container.items_mut("env") else { return };
    match env.iter_mut().find(|there| there.text("name") == variable.text("name")) {
        Some(there) => *there = variable.clone(),
        None => env.push(variable.clone()),
    }
}

/// Takes from a copied workload what only one can have.
fn detach(workload: &mut Value, path: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let Some(pod) = workload.at_mut(path) else { return notes };
    for list in ["spec.containers", "spec.initContainers"] {
        for container in pod.items_mut(list).into_iter().flatten() {
            for port in container.items_mut("ports").into_iter().flatten() {
                if port.as_mapping_mut().is_some_and(|port| port.shift_remove("hostPort").is_some()) {
                    notes.push("  its `hostPort` is left out: a node has one".to_owned());
                }
            }
        }
    }
    for volume in pod.items("spec.volumes") {
        if let Some(claim) = volume.text("persistentVolumeClaim.claimName") {
            notes.push(format!(
                "  it uses the baseline's volume claim {claim}: give it one of its own if it writes there"
            ));
        }
    }
    notes
}

/// What tells others that an object is theirs, and what only the cluster says.
fn is_foreign(key: &str) -> bool {
    let of = |domain: &str| key.strip_prefix(domain).is_some_and(|rest| rest.starts_with('/'));
    let domains = [
        "kubectl.kubernetes.io",
        "deployment.kubernetes.io",
        "meta.helm.sh",
        "helm.sh",
        "argocd.argoproj.io",
        "kustomize.toolkit.fluxcd.io",
        "helm.toolkit.fluxcd.io",
    ];
    domains.iter().any(|domain| of(domain))
        || matches!(
            key,
            "overlane.dev/inject"
                | "app.kubernetes.io/managed-by"
                | "pod-template-hash"
                | "controller-revision-hash"
        )
}

/// The metadata of a copy: its own name, and labels by which nobody else selects it.
fn metadata(
    of: &Value,
    stand: &Stand,
    replaced: &(BTreeSet<String>, String),
    own: &[(Value, Value)],
    named: bool,
) -> Value {
    let mut made = Mapping::new();
    if named {
        made.insert("name".into(), stand.name.as_str().into());
        if let Some(namespace) = &stand.namespace {
            made.insert("namespace".into(), namespace.as_str().into());
        }
    }
    let mut labels = Mapping::new();
    for (key, value) in of.at("labels").and_then(Value::as_mapping).into_iter().flatten() {
        let key = key.as_str().unwrap_or_default();
        if !is_foreign(key) {
            let value = if replaced.0.contains(key) { replaced.1.as_str().into() } else { value.clone() };
            labels.insert(key.into(), value);
        }
    }
    labels.extend(own.iter().cloned());
    if named {
        labels.insert("app.kubernetes.io/managed-by".into(), "overlane".into());
    }
    made.insert("labels".into(), labels.into());
    // Those of a whole workload or Service are for controllers, which have nothing to do with the copy.
    let annotations =
        of.at("annotations").and_then(Value::as_mapping).filter(|_| !named).cloned().unwrap_or_default();
    let annotations: Mapping =
        annotations.into_iter().filter(|(key, _)| !key.as_str().is_some_and(is_foreign)).collect();
    if !annotations.is_empty() {
        made.insert("annotations".into(), annotations.into());
    }
    made.into()
}

fn relabel(
    workload: &mut Value,
    path: &str,
    stand: &Stand,
    replaced: &(BTreeSet<String>, String),
    own: &[(Value, Value)],
) {
    remove(workload, "status");
    let empty = Value::Mapping(Mapping::new());
    workload["metadata"] = metadata(workload.at("metadata").unwrap_or(&empty), stand, replaced, own, true);
    if let Some(pod) = workload.at_mut(path) {
        pod["metadata"] = metadata(pod.at("metadata").unwrap_or(&empty), stand, replaced, own, false);
    }
}

/// Has a copied workload select its own pods, one of them.
fn select_own(workload: &mut Value, stand: &Stand, own: &[(Value, Value)]) {
    let selector: Mapping = own.iter().cloned().collect();
    workload["spec"]["selector"] =
        Value::Mapping([(Value::from("matchLabels"), Value::from(selector))].into_iter().collect());
    workload["spec"]["replicas"] = 1.into();
    if workload.text("kind") == Some("StatefulSet") {
        workload["spec"]["serviceName"] = stand.name.as_str().into();
    }
}

/// The number of a container's port.
fn number(pod: Option<&Value>, target: &Port) -> Option<u16> {
    match target {
        Port::Number(number) => Some(*number),
        Port::Name(name) => container_ports(pod?)
            .into_iter()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.number),
    }
}

/// A copied Service: inside of the cluster, at an address that the cluster chooses, for the overlay's pods. It leads to a
/// number, which it may: there are no older pods for which that would be another one.
fn clean_service(
    service: &mut Value,
    stand: &Stand,
    own: &[(Value, Value)],
    chosen: &ServicePort,
    listens: Option<u16>,
) {
    remove(service, "status");
    let empty = Value::Mapping(Mapping::new());
    service["metadata"] =
        metadata(service.at("metadata").unwrap_or(&empty), stand, &Default::default(), own, true);
    let mut ports = service.items("spec.ports").to_vec();
    for port in ports.iter_mut().filter_map(Value::as_mapping_mut) {
        port.shift_remove("nodePort");
    }
    let number = stand.port.unwrap_or(chosen.number);
    if let Some(port) = ports.get_mut(chosen.index) {
        port["port"] = number.into();
        port["targetPort"] = listens.map_or_else(|| chosen.target.value(), Value::from);
    }
    let taken = |port: &Value| port.at("port").and_then(Value::as_u64) == Some(number.into());
    let kept = ports.iter().enumerate().filter(|(at, port)| *at == chosen.index || !taken(port));
    let ports: Vec<_> = kept.map(|(_, port)| port.clone()).collect();
    let selector: Mapping = own.iter().cloned().collect();
    let spec = [(Value::from("selector"), selector.into()), (Value::from("ports"), Value::Sequence(ports))];
    service["spec"] = Value::Mapping(spec.into_iter().collect());
}

fn namespace_object(namespace: &str, own: &[(Value, Value)]) -> Value {
    let mut object: Value =
        serde_yaml::from_str("{apiVersion: v1, kind: Namespace, metadata: {}}").unwrap_or_default();
    object["metadata"]["name"] = namespace.into();
    let overlay = own.iter().filter(|(key, _)| key.as_str() == Some(OVERLAY)).cloned();
    object["metadata"]["labels"] = Value::Mapping(overlay.collect());
    object
}

/// What a pod uses that is in the baseline's namespace, and not in its own.
fn needs(workload: &Value, path: &str, namespace: &str) -> Option<String> {
    let spec = workload.at(path)?.at("spec")?;
    let mut names = BTreeSet::new();
    collect(spec, &mut names);
    names.extend(
        spec.text("serviceAccountName")
            .filter(|name| *name != "default")
            .map(|name| format!("ServiceAccount {name}")),
    );
    let names: Vec<_> = names.into_iter().collect();
    (!names.is_empty())
        .then(|| format!("  it needs in the namespace {namespace} as well: {}", names.join(", ")))
}

/// The ConfigMaps, Secrets and claims that a value names, wherever in it.
fn collect(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Mapping(fields) => {
            for (key, inside) in fields {
                let kind = match key.as_str() {
                    Some("configMap" | "configMapRef" | "configMapKeyRef") => Some(("ConfigMap", "name")),
                    Some("secretRef" | "secretKeyRef") => Some(("Secret", "name")),
                    Some("secret") => Some(("Secret", "secretName")),
                    Some("persistentVolumeClaim") => Some(("PersistentVolumeClaim", "claimName")),
                    _ => None,
                };
                names.extend(kind.and_then(|(kind, field)| Some(format!("{kind} {}", inside.text(field)?))));
                if key.as_str() == Some("imagePullSecrets") {
                    names.extend(
                        inside
                            .as_sequence()
                            .into_iter()
                            .flatten()
                            .filter_map(|secret| Some(format!("Secret {}", secret.text("name")?))),
                    );
                }
                collect(inside, names);
            }
        }
        Value::Sequence(items) => items.iter().for_each(|item| collect(item, names)),
        _ => {}
    }
}

fn said(
    overlay: &Overlay<'_>,
    changed: &Changed,
    stand: &Stand,
    from: &Value,
    scheme: &str,
    port: u16,
) -> String {
    let host = match &stand.namespace {
        Some(namespace) => format!("{}.{namespace}.svc.cluster.local", stand.name),
        None => stand.name.clone(),
    };
    let url = format!("{scheme}://{host}:{port}");
    let made = format!("{}: {} as {}", changed.name, title(from), stand.name);
    match &changed.url {
        Some(known) => format!("{made}, at {known}"),
        None => format!(
            "{made}. No blueprint says where it is: write `url: {url}` to the service in {}, or run `overlane attach {} {} --url {url}`",
            changed.place, overlay.id, changed.name
        ),
    }
}

/// Variables as a blueprint has them: a mapping, a list of Kubernetes' own, or of `NAME=VALUE`.
#[must_use]
pub fn variables(env: &Value) -> Vec<Value> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => serde_yaml::to_string(other).unwrap_or_default().trim_end().to_owned(),
    };
    match env {
        Value::Mapping(all) => all.iter().map(|(name, value)| entry(&text(name), &text(value))).collect(),
        Value::Sequence(all) => all
            .iter()
            .filter_map(|item| match item {
                Value::String(pair) => pair.split_once('=').map(|(name, value)| entry(name, value)),
                other if other.at("valueFrom").is_some() => Some(other.clone()),
                other => Some(entry(other.text("name")?, &text(other.at("value").unwrap_or(&Value::Null)))),
            })
            .collect(),
        _ => Vec::new(),
    }
}
