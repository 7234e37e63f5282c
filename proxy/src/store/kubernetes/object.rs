//! Custom resources as entries. One object is an environment (`spec`) and what is attached to it (`attached`), so that
//! both change and go together. Its text as somebody wrote it, with comments, stands beside it in an annotation for as
//! long as it says what the object says.

use std::sync::Arc;

use overlane_config::blueprint::{API_VERSION, Document, Mode, Value as Written, hex, parse, values};
use overlane_config::diagnostic::Source;
use overlane_config::name::EnvironmentId;
use overlane_config::time::UnixMillis;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::schema;
use crate::store::shared::{Change, Entry, Fault, Revision};

/// The annotation with the text as it was written.
const TEXT: &str = "overlane.dev/text";
/// And the one with the digest of what it says: what somebody changed since is not overruled by it.
const TEXT_OF: &str = "overlane.dev/text-of";
/// A longer text is not kept beside what it says: all annotations together have 256 KiB.
const LONGEST_TEXT: usize = 192 << 10;
/// How names of what is attached end.
const ATTACHED: &str = ".attached.yaml";
const ENVIRONMENT: &str = ".yaml";

/// A kind of custom resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `baselines.overlane.dev`.
    Baseline,
    /// `overlays.overlane.dev`.
    Overlay,
}

impl Kind {
    /// All that there are, in the order in which a [`Revision`] counts them.
    pub const ALL: [Self; 2] = [Self::Baseline, Self::Overlay];

    /// As `kind:` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "Baseline",
            Self::Overlay => "Overlay",
        }
    }

    /// As paths of the API have it.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Baseline => "baselines",
            Self::Overlay => "overlays",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Baseline => Self::Overlay,
            Self::Overlay => Self::Baseline,
        }
    }
}

/// What an entry's name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Environment,
    Attached,
}

/// The object and the part of it that an entry is.
pub(super) fn part(entry: &str) -> Option<(&str, Part)> {
    let attached = entry.strip_suffix(ATTACHED).map(|name| (name, Part::Attached));
    attached.or_else(|| entry.strip_suffix(ENVIRONMENT).map(|name| (name, Part::Environment)))
}

/// An object as the API server has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) value: Value,
}

impl Object {
    fn metadata(&self, field: &str) -> &str {
        self.value["metadata"][field].as_str().unwrap_or_default()
    }

    pub(super) fn name(&self) -> &str {
        self.metadata("name")
    }

    pub(super) fn uid(&self) -> &str {
        self.metadata("uid")
    }

    pub(super) fn resource_version(&self) -> &str {
        self.metadata("resourceVersion")
    }

    /// What it says, without what is said about it.
    fn said(&self) -> Value {
        let mut metadata = json!({ "name": self.name() });
        if let Some(labels) = self.value["metadata"]["labels"].as_object().filter(|labels| !labels.is_empty())
        {
            metadata["labels"] = Value::Object(labels.clone());
        }
        envelope(self.kind, &metadata, &self.value["spec"])
    }

    /// The environment: as it was written, or as it would be.
    pub(super) fn text(&self) -> String {
        let said = self.said();
        let annotations = &self.value["metadata"]["annotations"];
        match (annotations[TEXT].as_str(), annotations[TEXT_OF].as_str()) {
            (Some(text), Some(of)) if of == digest_of(&said) => text.to_owned(),
            // What was JSON can always be written.
            _ => serde_yaml::to_string(&said).unwrap_or_default(),
        }
    }

    /// What is attached to it, as a record of its own.
    pub(super) fn attached(&self) -> Option<String> {
        let attached = self.value.get("attached").filter(|attached| !attached.is_null())?;
        let record = json!({
            "apiVersion": API_VERSION,
            "kind": "Attachment",
            "metadata": { "name": self.name() },
            "spec": attached,
        });
        Some(serde_yaml::to_string(&record).unwrap_or_default())
    }

    /// When what it says was last written: a ttl counts from here.
    fn modified(&self) -> Option<UnixMillis> {
        let metadata = &self.value["metadata"];
        let of_spec = |one: &&Value| one["subresource"].is_null() && one["fieldsV1"].get("f:spec").is_some();
        let written = metadata["managedFields"].as_array().into_iter().flatten().filter(of_spec);
        let times = written.filter_map(|one| time(&one["time"]));
        times.max().or_else(|| time(&metadata["creationTimestamp"]))
    }

    /// The state of a part that has this text: another one where it is another object of the same name.
    fn revision(&self, text: &str) -> Revision {
        let uid = self.uid();
        Revision::new(format!("{}-{}", uid.get(..8).unwrap_or(uid), short(text.as_bytes())))
    }
}

fn time(value: &Value) -> Option<UnixMillis> {
    overlane_config::time::parse_timestamp(value.as_str()?).ok()
}

fn envelope(kind: Kind, metadata: &Value, spec: &Value) -> Value {
    json!({ "apiVersion": API_VERSION, "kind": kind.name(), "metadata": metadata, "spec": spec })
}

/// Keys are in order, so that what says the same has the same digest.
fn digest_of(said: &Value) -> String {
    short(said.to_string().as_bytes())
}

fn short(bytes: &[u8]) -> String {
    hex(&digest(&SHA256, bytes).as_ref()[..8])
}

/// All objects of one name: more than one is a mistake, which is shown where they are read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Named {
    pub(super) baseline: Option<Object>,
    pub(super) overlay: Option<Object>,
}

impl Named {
    pub(super) fn of(&self, kind: Kind) -> Option<&Object> {
        match kind {
            Kind::Baseline => self.baseline.as_ref(),
            Kind::Overlay => self.overlay.as_ref(),
        }
    }

    pub(super) fn set(&mut self, kind: Kind, object: Option<Object>) {
        match kind {
            Kind::Baseline => self.baseline = object,
            Kind::Overlay => self.overlay = object,
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Object> {
        self.baseline.iter().chain(&self.overlay)
    }

    /// The one that there is; none where there are two.
    pub(super) fn only(&self) -> Option<&Object> {
        match (&self.baseline, &self.overlay) {
            (Some(one), None) | (None, Some(one)) => Some(one),
            _ => None,
        }
    }

    pub(super) fn is_twofold(&self) -> bool {
        self.baseline.is_some() && self.overlay.is_some()
    }

    /// A part as an entry.
    pub(super) fn entry(&self, name: &str, part: Part) -> Option<Entry> {
        let text = |object: &Object| match part {
            Part::Environment => Some(object.text()),
            Part::Attached => object.attached(),
        };
        let texts: Vec<_> = self.all().filter_map(|object| Some((object, text(object)?))).collect();
        let (first, _) = texts.first()?;
        let whole = texts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("---\n");
        let revision = first.revision(&whole);
        let modified = texts.iter().filter_map(|(object, _)| object.modified()).max();
        let modified = modified.filter(|_| part == Part::Environment);
        Some(Entry { name: entry_name(name, part), text: whole, modified, revision })
    }

    /// What became of its entries.
    pub(super) fn changes(&self, name: &str) -> [Change; 2] {
        [Part::Environment, Part::Attached].map(|part| match self.entry(name, part) {
            Some(entry) => Change::Put(entry),
            None => Change::Gone(entry_name(name, part)),
        })
    }

    /// Its entries.
    pub(super) fn entries(&self, name: &str) -> impl Iterator<Item = Entry> {
        [Part::Environment, Part::Attached].into_iter().filter_map(|part| self.entry(name, part))
    }
}

/// The name of an entry. Objects may have dots in their names, which ids have not: those do not become what is attached to
/// others.
fn entry_name(object: &str, part: Part) -> String {
    let object = object.replace('.', "%2E");
    match part {
        Part::Environment => format!("{object}{ENVIRONMENT}"),
        Part::Attached => format!("{object}{ATTACHED}"),
    }
}

/// An environment that is about to be written.
pub(super) struct Wanted {
    pub(super) kind: Kind,
    text: String,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    spec: Value,
}

/// What a text asks for.
pub(super) fn wanted(name: &str, text: &str) -> Result<Wanted, Fault> {
    let source = Arc::new(Source::new(format!("{name}{ENVIRONMENT}").into(), text.to_owned(), None));
    let parsed = parse(&source);
    let (Some([Document::Blueprint(blueprint)]), Some(written)) =
        (parsed.documents.get(..), values(&source).and_then(|mut all| all.pop()))
    else {
        return Err(Fault(format!(
            "{name}{ENVIRONMENT} is not one blueprint: Kubernetes keeps one in an object"
        )));
    };
    if blueprint.id.value.as_str() != name {
        let id = &blueprint.id.value;
        return Err(Fault(format!(
            "Kubernetes keeps `{id}` in an object of that name, and not in {name}{ENVIRONMENT}"
        )));
    }
    let kind = match blueprint.mode {
        Mode::Baseline => Kind::Baseline,
        Mode::Overlay { .. } => Kind::Overlay,
    };
    let in_spec = written.get("spec").unwrap_or(&written);
    let mut spec = schema::json(in_spec, &schema::spec(kind)).unwrap_or_else(|| json!({}));
    let of_labels = |(key, value): &(Box<str>, Box<str>)| (key.to_string(), Value::from(&**value));
    let labels: Map<_, _> =
        blueprint.labels.iter().filter(|(key, value)| is_label(key, value)).map(of_labels).collect();
    if let Some(spec) = spec.as_object_mut() {
        // What is said of the object has one place, where `kubectl label` finds it; labels that Kubernetes refuses stay.
        spec.remove("metadata");
        spec.remove("status");
        if labels.len() == blueprint.labels.len() {
            spec.remove("labels");
        }
    }
    let annotations = written.get("metadata").and_then(|metadata| metadata.get("annotations"));
    let annotations = annotations.map_or_else(Map::new, texts);
    Ok(Wanted { kind, text: text.to_owned(), labels, annotations, spec })
}

/// The annotations of a document, without ours.
fn texts(written: &Written) -> Map<String, Value> {
    let Written::Mapping(entries) = written else { return Map::new() };
    let text = |(key, value): &(String, Written)| match value {
        Written::Scalar { text, .. } if ![TEXT, TEXT_OF].contains(&key.as_str()) => {
            Some((key.clone(), Value::from(text.as_str())))
        }
        _ => None,
    };
    entries.iter().filter_map(text).collect()
}

/// Whether Kubernetes has such labels: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>.
fn is_label(key: &str, value: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let word = |text: &str| {
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        text.len() <= 63
            && text.bytes().all(inner)
            && ends(text.as_bytes().first())
            && ends(text.as_bytes().last())
    };
    let domain = |text: &str| {
        text.len() <= 253
            && text.split('.').all(|label| {
                let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                word(label) && label.bytes().all(fine)
            })
    };
    let named = match key.split_once('/') {
        Some((prefix, name)) => domain(prefix) && word(name),
        None => word(key),
    };
    named && (value.is_empty() || word(value))
}

impl Wanted {
    /// The object that says so, made of the one that there is: what others noted on that stays.
    pub(super) fn object(&self, namespace: &str, name: &str, now: Option<&Object>) -> Object {
        let mut value = now.map_or_else(|| json!({ "metadata": {} }), |now| now.value.clone());
        value["apiVersion"] = API_VERSION.into();
        value["kind"] = self.kind.name().into();
        value["spec"] = self.spec.clone();
        let metadata = &mut value["metadata"];
        metadata["name"] = name.into();
        metadata["namespace"] = namespace.into();
        let mut labels = metadata["labels"].as_object().cloned().unwrap_or_default();
        let before = now.map_or_else(Map::new, labels_before);
        labels.retain(|key, _| !before.contains_key(key));
        labels.extend(self.labels.clone());
        metadata["labels"] = Value::Object(labels);
        let mut annotations = metadata["annotations"].as_object().cloned().unwrap_or_default();
        annotations.extend(self.annotations.clone());
        annotations.retain(|key, _| key != TEXT && key != TEXT_OF);
        metadata["annotations"] = Value::Object(annotations);
        let mut object = Object { kind: self.kind, value };
        if self.text.len() <= LONGEST_TEXT {
            let of = digest_of(&object.said());
            let annotations = &mut object.value["metadata"]["annotations"];
            annotations[TEXT] = self.text.as_str().into();
            annotations[TEXT_OF] = of.into();
        }
        object
    }
}

/// The labels that what was written before gave an object.
fn labels_before(now: &Object) -> Map<String, Value> {
    wanted(now.name(), &now.text()).map_or_else(|_| Map::new(), |before| before.labels)
}

/// What is attached, as an object has it.
pub(super) fn attached(name: &str, text: &str) -> Result<Value, Fault> {
    let source = Arc::new(Source::new(format!("{name}{ATTACHED}").into(), text.to_owned(), None));
    let spec = values(&source)
        .and_then(|all| all.into_iter().next())
        .and_then(|written| schema::json(written.get("spec")?, &schema::attached()));
    spec.ok_or_else(|| Fault(format!("{name}{ATTACHED} is not what can be attached to an environment")))
}

/// Whether an object of ours can be called so.
pub(super) fn is_name(name: &str) -> bool {
    name.parse::<EnvironmentId>().is_ok()
}
