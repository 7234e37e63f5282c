//! Who manages which fields of an object (`managedFields`, in the format FieldsV1), and what comes of an object that is applied on
//! the server's side. Lists of a blueprint are atomic, since our definitions say nothing else of them; a status is not applied.
//!
//! Held against <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Where a field is.
type Path = Vec<String>;
type Fields = BTreeSet<Path>;

/// What of `metadata` is somebody's.
const OF_METADATA: [&str; 4] = ["annotations", "finalizers", "labels", "ownerReferences"];

/// What one manager has.
struct Managed {
    manager: String,
    operation: String,
    subresource: Option<String>,
    version: String,
    time: String,
    fields: Fields,
}

/// A field that others manage, and who.
pub(super) type Conflict = (String, String);

/// The fields of an object that somebody manages: those of its status alone, or all others.
fn fields(object: &Value, status: bool) -> Fields {
    let mut all = Fields::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        match name.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" if !status => {
                let all_of_it = value.as_object().into_iter().flatten();
                for (name, value) in all_of_it.filter(|(name, _)| OF_METADATA.contains(&name.as_str())) {
                    leaves(value, vec!["metadata".to_owned(), name.clone()], &mut all);
                }
            }
            "metadata" => {}
            name if (name == "status") == status => leaves(value, vec![name.to_owned()], &mut all),
            _ => {}
        }
    }
    all
}

fn leaves(value: &Value, at: Path, all: &mut Fields) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                leaves(value, [&at[..], std::slice::from_ref(name)].concat(), all);
            }
        }
        _ => drop(all.insert(at)),
    }
}

fn value<'v>(object: &'v Value, at: &[String]) -> Option<&'v Value> {
    at.iter().try_fold(object, |value, name| value.get(name))
}

fn set(object: &mut Value, at: &[String], next: Value) {
    let [name, rest @ ..] = at else {
        *object = next;
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    set(&mut object[name.as_str()], rest, next);
}

/// Takes a field away, and what is empty then.
fn remove(object: &mut Value, at: &[String]) {
    let Some(fields) = object.as_object_mut() else { return };
    match at {
        [] => {}
        [name] => drop(fields.remove(name)),
        [name, rest @ ..] => {
            if let Some(below) = fields.get_mut(name) {
                remove(below, rest);
                if below.as_object().is_some_and(Map::is_empty) {
                    fields.remove(name);
                }
            }
        }
    }
}

/// FieldsV1: `{"f:spec": {"f:routing": {}}}`.
fn written(fields: &Fields) -> Value {
    let mut all = json!({});
    for path in fields {
        let path: Vec<_> = path.iter().map(|name| format!("f:{name}")).collect();
        set(&mut all, &path, json!({}));
    }
    all
}

fn read_fields(value: &Value, at: &[String], all: &mut Fields) {
    let below = value.as_object().filter(|below| !below.is_empty());
    match below {
        None if at.is_empty() => {}
        None => drop(all.insert(at.to_owned())),
        Some(below) => {
            for (name, value) in below {
                let name = name.strip_prefix("f:").unwrap_or(name).to_owned();
                read_fields(value, &[at, &[name]].concat(), all);
            }
        }
    }
}

fn read(object: &Value) -> Vec<Managed> {
    let one = |value: &Value| {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let mut fields = Fields::new();
        read_fields(&value["fieldsV1"], &[], &mut fields);
        Some(Managed {
            manager: text("manager")?,
            operation: text("operation")?,
            subresource: text("subresource"),
            version: text("apiVersion")?,
            time: text("time")?,
            fields,
        })
    };
    object["metadata"]["managedFields"].as_array().into_iter().flatten().filter_map(one).collect()
}

fn write(object: &mut Value, all: &[Managed]) {
    let one = |managed: &Managed| {
        let mut value = json!({
            "manager": managed.manager, "operation": managed.operation, "apiVersion": managed.version,
            "time": managed.time, "fieldsType": "FieldsV1", "fieldsV1": written(&managed.fields),
        });
        if let Some(subresource) = &managed.subresource {
            value["subresource"] = subresource.as_str().into();
        }
        value
    };
    object["metadata"]["managedFields"] = all.iter().filter(|one| !one.fields.is_empty()).map(one).collect();
}

/// Notes what somebody changed by writing the object as it is `next`: that is theirs from now on, and nobody else's.
pub(super) fn note(known: Option<&Value>, next: &mut Value, manager: &str, status: bool, now: &str) {
    let nothing = json!({});
    let known = known.unwrap_or(&nothing);
    let (before, after) = (fields(known, status), fields(next, status));
    let changed: Fields =
        after.iter().filter(|path| value(known, path) != value(next, path)).cloned().collect();
    let gone: Fields = before.difference(&after).cloned().collect();
    let mut all = read(known);
    let subresource = status.then(|| "status".to_owned());
    let own =
        |one: &Managed| one.manager == manager && one.operation == "Update" && one.subresource == subresource;
    for one in &mut all {
        let own = own(one);
        one.fields.retain(|path| !gone.contains(path) && (own || !changed.contains(path)));
    }
    if !changed.is_empty() {
        match all.iter_mut().find(|one| own(one)) {
            Some(own) => {
                own.fields.extend(changed);
                now.clone_into(&mut own.time);
            }
            None => all.push(Managed {
                manager: manager.to_owned(),
                operation: "Update".to_owned(),
                subresource,
                version: next["apiVersion"].as_str().unwrap_or_default().to_owned(),
                time: now.to_owned(),
                fields: changed,
            }),
        }
    }
    write(next, &all);
}

/// The object that comes of it where somebody applies a part of one; or what others manage that would be another thing then.
pub(super) fn apply(
    known: Option<&Value>,
    applied: &Value,
    manager: &str,
    force: bool,
    now: &str,
) -> Result<Value, Vec<Conflict>> {
    let mut next = known.cloned().unwrap_or_else(|| json!({ "metadata": {} }));
    let mut all = read(&next);
    let wanted = fields(applied, false);
    let own = |one: &Managed| one.manager == manager && one.operation == "Apply";
    let mut conflicts = Vec::new();
    for one in all.iter_mut().filter(|one| !own(one)) {
        let others = |path: &Path| value(&next, path) != value(applied, path);
        let theirs: Vec<_> =
            one.fields.iter().filter(|path| wanted.contains(*path) && others(path)).cloned().collect();
        conflicts.extend(theirs.iter().map(|path| (format!(".{}", path.join(".")), one.manager.clone())));
        one.fields.retain(|path| !theirs.contains(path));
    }
    if !conflicts.is_empty() && !force {
        return Err(conflicts);
    }
    let before = all.iter().find(|one| own(one)).map(|one| one.fields.clone()).unwrap_or_default();
    for path in before.difference(&wanted) {
        let others = all.iter().filter(|one| !own(one)).any(|one| one.fields.contains(path));
        if !others {
            remove(&mut next, path);
        }
    }
    for path in &wanted {
        let wanted = value(applied, path).cloned().unwrap_or_default();
        // A mapping without fields is merged with what others have in it.
        let is_there = wanted.is_object() && value(&next, path).is_some_and(Value::is_object);
        if !is_there {
            set(&mut next, path, wanted);
        }
    }
    for name in ["apiVersion", "kind"] {
        next[name] = applied[name].clone();
    }
    next["metadata"]["name"] = applied["metadata"]["name"].clone();
    let unchanged = before == wanted && known.is_some_and(|known| fields_of(known) == fields_of(&next));
    let time = all.iter().find(|one| own(one) && unchanged).map_or(now, |one| &one.time).to_owned();
    let version = applied["apiVersion"].as_str().unwrap_or_default().to_owned();
    all.retain(|one| !own(one));
    let (manager, operation) = (manager.to_owned(), "Apply".to_owned());
    all.push(Managed { manager, operation, subresource: None, version, time, fields: wanted });
    write(&mut next, &all);
    Ok(next)
}

/// All that can be managed, with its values.
fn fields_of(object: &Value) -> Vec<(Path, Value)> {
    let all = fields(object, false).into_iter();
    all.map(|path| (path.clone(), value(object, &path).cloned().unwrap_or_default())).collect()
}
