//! Which decisions somebody wants to see.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Decision;

/// Which decisions are wanted: those that have all of this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// The trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// The request's own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// An id that the key names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<String>,
    /// The service that was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Statuses>,
    /// What the path begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The role of the listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// Statuses: `200`, `5xx`, or several by commas. 0 is that no answer was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses {
    text: String,
    /// The first and the last of each.
    ranges: Vec<(u16, u16)>,
}

impl Statuses {
    /// Whether this one is among them.
    #[must_use]
    pub fn contain(&self, status: u16) -> bool {
        self.ranges.iter().any(|(first, last)| (first..=last).contains(&&status))
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = |one: &str| {
            let one = one.trim();
            let class = one.strip_suffix("xx").or_else(|| one.strip_suffix("XX"));
            match class.map(str::parse::<u16>) {
                Some(Ok(class @ 1..=5)) => Some((class * 100, class * 100 + 99)),
                Some(_) => None,
                None => one.parse().ok().filter(|status| *status <= 599).map(|status| (status, status)),
            }
        };
        let ranges = text.split(',').map(|one| {
            range(one).ok_or_else(|| {
                format!("`{}` is no status: write 200, 5xx, or several by commas", one.escape_debug())
            })
        });
        Ok(Self { ranges: ranges.collect::<Result<_, _>>()?, text: text.to_owned() })
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Filter {
    /// Its part of a url: `overlay=alice&status=5xx`.
    #[must_use]
    pub fn query(&self) -> String {
        let status = self.status.as_ref().map(ToString::to_string);
        let all = [
            ("trace", &self.trace),
            ("request", &self.request),
            ("overlay", &self.overlay),
            ("service", &self.service),
            ("status", &status),
            ("path", &self.path),
            ("role", &self.role),
        ];
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in all {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        query.finish()
    }
}

impl Decision {
    /// By what decisions of several proxies are put in order.
    #[must_use]
    pub fn order(&self) -> (&str, &str) {
        (&self.at, &self.proxy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_numbers_and_classes() {
        let statuses: Statuses = "200,5xx, 404".parse().expect("statuses");
        assert!([200, 404, 500, 599].into_iter().all(|status| statuses.contain(status)));
        assert!([0, 201, 403, 499].into_iter().all(|status| !statuses.contain(status)));
        for wrong in ["", "6xx", "xx", "600", "5x", "200,", "-1"] {
            let told = wrong.parse::<Statuses>().expect_err(wrong);
            assert!(told.ends_with("write 200, 5xx, or several by commas"), "{told}");
        }
    }

    #[test]
    fn a_filter_is_read_as_it_was_written() {
        let filter = Filter {
            overlay: Some("alice".to_owned()),
            path: Some("/a b&c".to_owned()),
            status: Some("5xx,200".parse().expect("statuses")),
            ..Filter::default()
        };
        let read: Vec<_> = form_urlencoded::parse(filter.query().as_bytes()).into_owned().collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read, [pair("overlay", "alice"), pair("status", "5xx,200"), pair("path", "/a b&c")]);
    }
}
