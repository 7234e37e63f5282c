//! How the value of a carrier spells ids, and how a foreign value becomes ids.

use super::{InvalidKey, Keys};
use crate::name::{MAX_LABEL, printable};

/// How ids are written in a carrier's value. Whatever the form, each must be a valid id as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In order, between commas: `a, b`.
    List,
    /// In order, between underscores: `a_b`.
    Underscores,
    /// A dotted name is its own lineage: `a.b.c` are the ids `a-b-c`, `a-b` and `a`, in order.
    Dotted,
}

impl Form {
    /// The ids in `values`, in order; `None` where there is none at all.
    ///
    /// # Errors
    /// Something in them is no id, and does not become one, or there are more than eight.
    pub fn parse<'l>(self, values: impl IntoIterator<Item = &'l [u8]>) -> Result<Option<Keys>, InvalidKey> {
        match self {
            Self::List => Keys::parse(values),
            Self::Underscores => {
                Keys::parse(values.into_iter().flat_map(|value| value.split(|byte| *byte == b'_')))
            }
            Self::Dotted => {
                let names = values.into_iter().flat_map(|value| value.split(|byte| *byte == b','));
                let mut names = names.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
                names.try_fold(None, lineage)
            }
        }
    }

    /// Calls `write` with the parts of a value that [`Form::parse`] reads as `keys`; `comma` is how the
    /// carrier writes one.
    pub fn write<'k>(self, keys: &'k Keys, comma: &'k str, mut write: impl FnMut(&'k str)) {
        if let Some(id) = keys.only() {
            return write(id);
        }
        match self {
            Self::List => joined(keys, comma, write),
            Self::Underscores => joined(keys, "_", write),
            Self::Dotted => {
                let ids: Vec<&str> = keys.iter().collect();
                for (number, chain) in ids.chunk_by(|id, next| is_parent(next, id)).enumerate() {
                    if number > 0 {
                        write(comma);
                    }
                    dotted(chain, &mut write);
                }
            }
        }
    }
}

fn joined<'k>(keys: &'k Keys, between: &'k str, mut write: impl FnMut(&'k str)) {
    for (number, id) in keys.iter().enumerate() {
        if number > 0 {
            write(between);
        }
        write(id);
    }
}

/// The ids of a dotted name after `keys`: itself with dashes, then without its last part, and so on.
fn lineage(keys: Option<Keys>, name: &[u8]) -> Result<Option<Keys>, InvalidKey> {
    if name.len() > MAX_LABEL {
        return Err(InvalidKey::NotAnId(printable(&String::from_utf8_lossy(name), 80)));
    }
    let id: Vec<u8> = name.iter().map(|byte| if *byte == b'.' { b'-' } else { *byte }).collect();
    let dots = (0..name.len()).rev().filter(|at| name[*at] == b'.');
    std::iter::once(id.len()).chain(dots).try_fold(keys, |keys, end| Keys::and(keys, &id[..end]))
}

/// Whether `id` is `parent` with another part behind a dash.
fn is_parent(parent: &str, id: &str) -> bool {
    id.strip_prefix(parent).is_some_and(|rest| rest.len() > 1 && rest.starts_with('-'))
}

/// The dotted name of ids each of which is the parent of the one before.
fn dotted<'k>(chain: &[&'k str], write: &mut impl FnMut(&'k str)) {
    let mut parent: Option<&str> = None;
    for id in chain.iter().rev() {
        match parent {
            None => write(id),
            Some(parent) => {
                write(".");
                write(&id[parent.len() + 1..]);
            }
        }
        parent = Some(id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(form: Form, value: &str) -> Result<Option<String>, ()> {
        let keys = form.parse([value.as_bytes()]).map_err(|_| ())?;
        Ok(keys.map(|keys| keys.as_str().to_owned()))
    }

    #[test]
    fn a_value_becomes_ids_by_the_rule_of_its_form() {
        for (form, value, expected) in [
            (Form::List, " a , b", Ok(Some("a, b"))),
            (Form::List, "a_b", Err(())),
            (Form::List, "a.b", Err(())),
            (Form::Underscores, "a_b", Ok(Some("a, b"))),
            (Form::Underscores, "b__a_", Ok(Some("b, a"))),
            (Form::Underscores, "_", Ok(None)),
            (Form::Dotted, "a", Ok(Some("a"))),
            (Form::Dotted, "a.b.c", Ok(Some("a-b-c, a-b, a"))),
            (Form::Dotted, "a.b, c", Ok(Some("a-b, a, c"))),
            (Form::Dotted, "a.b,a.c", Ok(Some("a-b, a, a-c"))),
            (Form::Dotted, "a..b", Err(())),
            (Form::Dotted, ".a", Err(())),
            (Form::Dotted, "a.", Err(())),
            (Form::Dotted, "A.b", Err(())),
            (
                Form::Dotted,
                "a.b.c.d.e.f.g.h",
                Ok(Some("a-b-c-d-e-f-g-h, a-b-c-d-e-f-g, a-b-c-d-e-f, a-b-c-d-e, a-b-c-d, a-b-c, a-b, a")),
            ),
            (Form::Dotted, "a.b.c.d.e.f.g.h.i", Err(())),
        ] {
            let expected = expected.map(|keys: Option<&str>| keys.map(str::to_owned));
            assert_eq!(parsed(form, value), expected, "{form:?} {value}");
        }
        let long = "a.".repeat(31) + "bc";
        assert_eq!(parsed(Form::Dotted, &long), Err(()));
    }

    #[test]
    fn a_lineage_is_written_as_its_dotted_name() {
        for (keys, expected) in [
            ("a-b-c, a-b, a", "a.b.c"),
            ("a-b-c, a", "a.b-c"),
            ("a, a-b", "a, a-b"),
            ("a-b, a, c-d, c, ab", "a.b, c.d, ab"),
            ("alice-payments", "alice-payments"),
        ] {
            let keys = Keys::parse([keys.as_bytes()]).unwrap().unwrap();
            let mut written = String::new();
            Form::Dotted.write(&keys, ", ", |part| written.push_str(part));
            assert_eq!(written, expected);
        }
    }

    proptest! {
        #[test]
        fn what_a_form_writes_it_reads(ids in prop::collection::vec("[a-c](-?[a-c]){0,4}", 1..8), form in 0..3) {
            let form = [Form::List, Form::Underscores, Form::Dotted][form as usize];
            let keys = Keys::parse([ids.join(",").as_bytes()]).unwrap().unwrap();
            let mut written = String::new();
            form.write(&keys, ",", |part| written.push_str(part));
            prop_assert_eq!(form.parse([written.as_bytes()]).unwrap(), Some(keys), "{}", written);
        }
    }
}
