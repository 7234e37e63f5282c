//! What is logged, and how.

use std::str::FromStr;

use serde::Deserialize;

use crate::settings::{SettingsError, error};

const FORMATS: &str = "`json`, `common` or `combined`";

/// How a line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// An object of JSON.
    #[default]
    Json,
    /// NCSA's common log format, and the route after it.
    Common,
    /// The same with `Referer` and `User-Agent` before the route, as Apache and nginx have it.
    Combined,
}

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AccessSettings {
    /// How a line is written.
    pub format: Format,
    /// Which share of all requests, from 0 to 1.
    pub sample: f64,
    /// Whether refusals, answers of 5xx, and requests without an answer are logged in any case.
    pub errors: bool,
}

impl Default for AccessSettings {
    fn default() -> Self {
        Self { format: Format::default(), sample: 1.0, errors: true }
    }
}

/// What the flag says: a switch, or the name of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFlag {
    /// As the file has it, else JSON; or no log.
    On(bool),
    /// In this format.
    As(Format),
}

impl FromStr for AccessFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Ok(Self::On(true)),
            "false" | "f" | "no" | "n" | "off" | "0" | "" => Ok(Self::On(false)),
            "json" => Ok(Self::As(Format::Json)),
            "common" => Ok(Self::As(Format::Common)),
            "combined" => Ok(Self::As(Format::Combined)),
            _ => Err(format!("write `true`, `false`, {FORMATS}")),
        }
    }
}

/// What the settings file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AccessFile {
    format: Format,
    sample: f64,
    errors: Errors,
}

/// Which errors are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Errors {
    Always,
    Sampled,
}

impl Default for AccessFile {
    fn default() -> Self {
        Self { format: Format::default(), sample: 1.0, errors: Errors::Always }
    }
}

impl AccessSettings {
    /// Merges the flag over `accessLog` of the file; `None` where there is to be no log.
    ///
    /// # Errors
    /// What cannot be.
    pub fn merge(
        flag: Option<AccessFlag>,
        file: Option<serde_yaml::Value>,
    ) -> Result<Option<Self>, SettingsError> {
        let file = file.map(read).transpose()?.unwrap_or_default();
        Ok(match flag {
            None => file,
            Some(AccessFlag::On(false)) => None,
            Some(AccessFlag::On(true)) => Some(file.unwrap_or_default()),
            Some(AccessFlag::As(format)) => Some(Self { format, ..file.unwrap_or_default() }),
        })
    }
}

fn read(value: serde_yaml::Value) -> Result<Option<AccessSettings>, SettingsError> {
    use serde_yaml::Value;
    let hint = format!("`true`, `false`, {FORMATS}, or `{{format: common, sample: 0.1, errors: always}}`");
    let wrong = |what: String| error(format!("`accessLog`: {what}"), hint.clone());
    let file = match value {
        Value::Null => return Ok(None),
        Value::Bool(on) => return Ok(on.then(AccessSettings::default)),
        Value::String(name) => {
            let format = serde_yaml::from_value(Value::String(name));
            AccessFile { format: format.map_err(|why| wrong(why.to_string()))?, ..AccessFile::default() }
        }
        other => serde_yaml::from_value(other).map_err(|why| wrong(why.to_string()))?,
    };
    let AccessFile { format, sample, errors } = file;
    if !(0.0..=1.0).contains(&sample) {
        return Err(error(format!("`accessLog.sample` is {sample}"), "a share of all requests, from 0 to 1"));
    }
    Ok(Some(AccessSettings { format, sample, errors: errors == Errors::Always }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(flag: Option<&str>, file: Option<&str>) -> Result<Option<AccessSettings>, String> {
        let flag = flag.map(str::parse).transpose()?;
        let file = file.map(|text| serde_yaml::from_str(text).expect("yaml"));
        AccessSettings::merge(flag, file).map_err(|wrong| wrong.message)
    }

    #[test]
    fn the_flag_switches_what_the_file_describes() {
        let json = AccessSettings::default();
        let common = AccessSettings { format: Format::Common, ..json };
        let rare = AccessSettings { sample: 0.25, errors: false, ..common };
        let told = "{format: common, sample: 0.25, errors: sampled}";
        for (flag, file, expected) in [
            (None, None, None),
            (None, Some("true"), Some(json)),
            (None, Some("false"), None),
            (None, Some("common"), Some(common)),
            (None, Some("{format: common}"), Some(common)),
            (None, Some(told), Some(rare)),
            (Some("true"), None, Some(json)),
            (Some("true"), Some(told), Some(rare)),
            (Some("json"), Some(told), Some(AccessSettings { format: Format::Json, ..rare })),
            (Some("off"), Some(told), None),
            (Some("Common"), Some("false"), Some(common)),
        ] {
            assert_eq!(merged(flag, file), Ok(expected), "{flag:?} {file:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_told_with_its_name() {
        for (flag, file, word) in [
            (Some("xml"), None, "combined"),
            (None, Some("xml"), "`accessLog`: unknown variant `xml`"),
            (None, Some("{sample: 2}"), "`accessLog.sample` is 2"),
            (None, Some("{sample: .nan}"), "`accessLog.sample` is NaN"),
            (None, Some("{formt: json}"), "unknown field `formt`"),
            (None, Some("[json]"), "`accessLog`"),
            (None, Some("{errors: never}"), "unknown variant `never`"),
        ] {
            let refused = merged(flag, file).expect_err("refused");
            assert!(refused.contains(word), "{flag:?} {file:?}: {refused}");
        }
    }
}
