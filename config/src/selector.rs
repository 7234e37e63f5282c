//! Selectors of environments by their labels, in the syntax of `kubectl -l`: `team=payments,tier!=web,env in (dev,ci),!old`.
//!
//! All requirements must hold. `!=` and `notin` also hold where there is no such label. As in Kubernetes
//! (k8s.io/apimachinery/pkg/labels), `in ()` is the empty value. `>` and `<` are refused: labels are texts.

use std::fmt;
use std::str::FromStr;

use crate::name::printable;

/// Requirements on labels; none select everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

/// What one label must be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: Box<str>,
    /// Whether it must not be so.
    negated: bool,
    /// The values that it may have; any, where there are none.
    values: Option<Vec<Box<str>>>,
}

impl Selector {
    /// Whether something with these labels is selected.
    pub fn selects<'l>(&self, label: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.0.iter().all(|requirement| {
            let holds = label(&requirement.key).is_some_and(|value| {
                requirement.values.as_ref().is_none_or(|all| all.iter().any(|one| **one == *value))
            });
            holds != requirement.negated
        })
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rest = Rest(text);
        let mut requirements = Vec::new();
        if rest.is_empty() {
            return Ok(Self(requirements));
        }
        loop {
            requirements.push(rest.requirement()?);
            if !rest.take(",") {
                return if rest.is_empty() { Ok(Self(requirements)) } else { Err(rest.unexpected("`,`")) };
            }
        }
    }
}

/// What is not read yet.
struct Rest<'t>(&'t str);

impl<'t> Rest<'t> {
    fn is_empty(&mut self) -> bool {
        self.0 = self.0.trim_start();
        self.0.is_empty()
    }

    /// Takes this, if it is next.
    fn take(&mut self, token: &str) -> bool {
        self.0 = self.0.trim_start();
        match self.0.strip_prefix(token) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// The longest word that is next; may be empty.
    fn word(&mut self) -> &'t str {
        self.0 = self.0.trim_start();
        let end = self.0.find(|c: char| c.is_whitespace() || "=!<>,()".contains(c)).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        word
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.take("!");
        let key: Box<str> = match self.word() {
            "" => return Err(self.unexpected("a label's key")),
            key => key.into(),
        };
        if absent {
            return Ok(Requirement { key, negated: true, values: None });
        }
        let one = |rest: &mut Self| Some(vec![rest.word().into()]);
        if self.take("!=") {
            return Ok(Requirement { key, negated: true, values: one(self) });
        }
        if self.take("==") || self.take("=") {
            return Ok(Requirement { key, negated: false, values: one(self) });
        }
        let before = self.0;
        match self.word() {
            "" if self.is_empty() || self.0.starts_with(',') => {
                Ok(Requirement { key, negated: false, values: None })
            }
            "in" => Ok(Requirement { key, negated: false, values: Some(self.values()?) }),
            "notin" => Ok(Requirement { key, negated: true, values: Some(self.values()?) }),
            _ => {
                self.0 = before;
                Err(self.unexpected("`=`, `!=`, `in`, `notin` or `,`"))
            }
        }
    }

    fn values(&mut self) -> Result<Vec<Box<str>>, String> {
        if !self.take("(") {
            return Err(self.unexpected("`(`"));
        }
        let mut values = vec![self.word().into()];
        while self.take(",") {
            values.push(self.word().into());
        }
        if self.take(")") { Ok(values) } else { Err(self.unexpected("`,` or `)`")) }
    }

    fn unexpected(&mut self, wanted: &str) -> String {
        match self.is_empty() {
            true => format!("it ends where {wanted} is expected"),
            false => format!("at `{}` {wanted} is expected", printable(self.0, 40)),
        }
    }
}

/// As it is written in its shortest form.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Requirement { key, negated, values }) in self.0.iter().enumerate() {
            f.write_str(if at > 0 { "," } else { "" })?;
            match (values.as_deref(), negated) {
                (None, false) => write!(f, "{key}")?,
                (None, true) => write!(f, "!{key}")?,
                (Some([one]), false) => write!(f, "{key}={one}")?,
                (Some([one]), true) => write!(f, "{key}!={one}")?,
                (Some(all), negated) => {
                    write!(f, "{key} {} ({})", if *negated { "notin" } else { "in" }, all.join(","))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let selector: Selector = selector.parse().expect(selector);
        selector.selects(|key| labels.iter().find(|(known, _)| *known == key).map(|(_, value)| *value))
    }

    #[test]
    fn selectors_mean_what_they_mean_to_kubectl() {
        let labels = [("team", "payments"), ("tier", ""), ("app.example.com/name", "web-1.2_x")];
        for (selector, expected) in [
            ("", true),
            ("team", true),
            ("!team", false),
            ("owner", false),
            ("! owner", true),
            ("team=payments", true),
            ("team == payments", true),
            ("team=web", false),
            ("team!=web", true),
            ("owner!=web", true),
            ("team in (web, payments)", true),
            ("team in(web)", false),
            ("team notin (web,shop)", true),
            ("owner notin (web)", true),
            ("tier=", true),
            ("tier in ()", true),
            ("team in ()", false),
            ("app.example.com/name=web-1.2_x", true),
            ("team=payments,tier,!owner", true),
            (" team = payments , tier = x ", false),
            ("in in (in)", false),
            ("notin", false),
        ] {
            assert_eq!(selects(selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn a_selector_that_is_none_says_where_and_what_is_expected() {
        for (selector, message) in [
            ("team=a b", "at `b` `,` is expected"),
            ("=a", "at `=a` a label's key is expected"),
            ("!", "it ends where a label's key is expected"),
            ("a,,b", "at `,b` a label's key is expected"),
            ("a,", "it ends where a label's key is expected"),
            (",", "at `,` a label's key is expected"),
            // Kubernetes compares whole numbers so; labels here are texts.
            ("n>5", "at `>5` `=`, `!=`, `in`, `notin` or `,` is expected"),
            ("n < 5", "at `< 5` `=`, `!=`, `in`, `notin` or `,` is expected"),
            ("a=b>c", "at `>c` `,` is expected"),
            ("a in b", "at `b` `(` is expected"),
            ("a in (b", "it ends where `,` or `)` is expected"),
            ("a like b", "at `like b` `=`, `!=`, `in`, `notin` or `,` is expected"),
        ] {
            assert_eq!(selector.parse::<Selector>().expect_err(selector), message, "{selector}");
        }
    }

    fn requirement() -> impl Strategy<Value = Requirement> {
        let values = proptest::option::of(proptest::collection::vec("[ab]?".prop_map(Box::from), 1..3));
        ("[xyz]", any::<bool>(), values).prop_map(|(key, negated, values)| Requirement {
            key: key.into(),
            negated,
            values,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_it_was_and_selects_as_a_naive_model_does(
            requirements in proptest::collection::vec(requirement(), 0..4),
            labels in proptest::collection::btree_map("[xyz]", "[ab]?", 0..3),
        ) {
            let selector = Selector(requirements.clone());
            prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector.clone()));
            let labels: BTreeMap<String, String> = labels;
            let naive = requirements.iter().all(|requirement| {
                match (labels.get(&*requirement.key), &requirement.values, requirement.negated) {
                    (None, _, negated) => negated,
                    (Some(_), None, negated) => !negated,
                    (Some(value), Some(all), false) => all.iter().any(|one| **one == **value),
                    (Some(value), Some(all), true) => all.iter().all(|one| **one != **value),
                }
            });
            prop_assert_eq!(selector.selects(|key| labels.get(key).map(String::as_str)), naive);
        }

        #[test]
        fn any_text_is_a_selector_or_a_message(text in "\\PC{0,40}") {
            let _ = text.parse::<Selector>();
        }
    }
}
