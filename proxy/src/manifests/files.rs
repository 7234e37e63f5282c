//! Files of manifests: their documents, the objects in them, and their text with what was changed.

use std::fmt;

use serde::Deserialize;
use serde_yaml::{Mapping, Value};

use super::{Fields, Mistake, places, rewrite};

/// A file of manifests.
#[derive(Debug)]
pub struct File {
    /// How it is called in messages.
    pub name: String,
    text: String,
    documents: Vec<Document>,
}

#[derive(Debug)]
struct Document {
    before: Value,
    now: Value,
}

/// Where an object is: which document of the file, and which item of it where that is a `List`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    document: usize,
    item: Option<usize>,
}

/// A text after its changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// The text.
    pub text: String,
    /// The documents, counted from 1, whose comments and layout could not be kept.
    pub anew: Vec<usize>,
}

impl File {
    /// Reads a file's text. Documents that say nothing are left out.
    ///
    /// # Errors
    /// It is no YAML, or a document of it is no mapping.
    pub fn read(name: impl Into<String>, text: String) -> Result<Self, Mistake> {
        let name = name.into();
        let mut documents = Vec::new();
        for value in values(&text) {
            let number = documents.len() + 1;
            let value = value.map_err(|why| {
                Mistake::at(
                    &name,
                    format_args!("document {number} cannot be read: {why}"),
                    "check keys, indentation, colons and quotes there",
                )
            })?;
            if !value.is_mapping() {
                let hint = "each document is one Kubernetes object, or a List of them";
                return Err(Mistake::at(&name, format_args!("document {number} is no mapping"), hint));
            }
            documents.push(Document { now: value.clone(), before: value });
        }
        Ok(Self { name, text, documents })
    }

    /// A file that is nowhere: of objects that were made, a document each.
    #[must_use]
    pub fn made(name: impl Into<String>, objects: Vec<Value>) -> Self {
        let documents = objects.into_iter().map(|now| Document { before: Value::Null, now }).collect();
        Self { name: name.into(), text: String::new(), documents }
    }

    /// Where the object of a document is, of a file in which no document is a list.
    pub(super) fn nth(&self, document: usize) -> At {
        debug_assert!(document < self.documents.len());
        At { document, item: None }
    }

    /// The objects, and where they are.
    pub fn objects(&self) -> impl Iterator<Item = (At, &Value)> {
        self.documents.iter().enumerate().flat_map(|(document, Document { now, .. })| {
            let items =
                now.text("kind").is_some_and(|kind| kind.ends_with("List")).then(|| now.items("items"));
            let alone = items.is_none().then_some((At { document, item: None }, now));
            let items = items.unwrap_or_default().iter().enumerate();
            alone
                .into_iter()
                .chain(items.map(move |(item, value)| (At { document, item: Some(item) }, value)))
        })
    }

    /// An object.
    #[must_use]
    pub fn object(&self, at: At) -> &Value {
        let now = &self.documents[at.document].now;
        at.item.and_then(|item| now.items("items").get(item)).unwrap_or(now)
    }

    /// An object, to be changed.
    pub fn object_mut(&mut self, at: At) -> &mut Value {
        let now = &mut self.documents[at.document].now;
        match at.item {
            Some(item) => &mut now["items"][item],
            None => now,
        }
    }

    /// How an object is called in messages.
    #[must_use]
    pub fn place(&self, at: At) -> String {
        let object = self.object(at);
        let kind = object.text("kind").unwrap_or("an object without a kind");
        format!(
            "{}: document {} ({kind} {})",
            self.name,
            at.document + 1,
            object.text("metadata.name").unwrap_or("without a name")
        )
    }

    /// The text as it was.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text with what was changed: everything else stays as it is, byte by byte. A document whose changes cannot
    /// be made in its text (they are below an alias, say) is written anew.
    #[must_use]
    pub fn written(&self) -> Written {
        let (mut edits, mut anew) = (Vec::new(), Vec::new());
        let nodes = places::documents(&self.text).filter(|nodes| nodes.len() == self.documents.len());
        for (at, document) in
            self.documents.iter().enumerate().filter(|(_, document)| document.now != document.before)
        {
            let Some(nodes) = &nodes else { return self.written_anew() };
            match rewrite::edits(&self.text, &nodes[at], &document.before, &document.now) {
                Some(made) if self.says(&made, at) => edits.extend(made),
                _ => {
                    anew.push(at + 1);
                    let text = serde_yaml::to_string(&document.now).unwrap_or_default();
                    edits.push((nodes[at].span.clone(), text.trim_end().to_owned()));
                }
            }
        }
        match rewrite::apply(&self.text, edits) {
            Some(text)
                if values_of(&text).is_some_and(|now| {
                    now.iter().eq(self.documents.iter().map(|document| &document.now))
                }) =>
            {
                Written { text, anew }
            }
            _ => self.written_anew(),
        }
    }

    /// Whether the text with these edits says what the document says now, and nothing else is changed.
    fn says(&self, edits: &[rewrite::Edit], at: usize) -> bool {
        let wanted = self.documents.iter().enumerate();
        let mut wanted =
            wanted.map(|(other, document)| if other == at { &document.now } else { &document.before });
        let text = rewrite::apply(&self.text, edits.to_vec());
        text.and_then(|text| values_of(&text)).is_some_and(|now| now.iter().eq(wanted.by_ref()))
    }

    fn written_anew(&self) -> Written {
        let anew = (1..=self.documents.len()).collect();
        Written { text: written(self.documents.iter().map(|document| &document.now)), anew }
    }
}

/// Documents as text, with `---` between them.
pub fn written<'v>(documents: impl IntoIterator<Item = &'v Value>) -> String {
    let texts: Vec<_> =
        documents.into_iter().map(|value| serde_yaml::to_string(value).unwrap_or_default()).collect();
    texts.join("---\n")
}

/// The documents of a text that say something, with what `<<` merges in.
fn values(text: &str) -> impl Iterator<Item = Result<Value, serde_yaml::Error>> {
    let values = serde_yaml::Deserializer::from_str(text).map(|document| {
        let mut value = Value::deserialize(document)?;
        value.apply_merge()?;
        Ok(value)
    });
    values.filter(|value| !matches!(value, Ok(Value::Null)))
}

fn values_of(text: &str) -> Option<Vec<Value>> {
    values(text).collect::<Result<_, _>>().ok()
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An empty mapping where there is none, and the mapping.
pub(super) fn mapping<'v>(value: &'v mut Value, path: &str) -> Option<&'v mut Mapping> {
    let mut value = value;
    for field in path.split('.') {
        let fields = value.as_mapping_mut()?;
        let entry = fields.entry(field.into()).or_insert(Value::Null);
        if entry.is_null() {
            *entry = Value::Mapping(Mapping::new());
        }
        value = entry;
    }
    value.as_mapping_mut()
}
