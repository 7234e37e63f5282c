//! One value: how it is read, and what is said where it cannot be.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use overlane_config::time::parse_duration;
use serde::{Deserialize, Deserializer};

use super::{SettingsError, error};

/// A value that a flag gave, or the text of one in the file: that is read where its key is known.
#[derive(Debug)]
pub(super) enum Told<T> {
    Read(T),
    Text(String),
}

impl<'de, T> Deserialize<'de> for Told<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::Text)
    }
}

impl<T: FromStr> Told<T> {
    /// The value; what `wrong` makes of the reason where its text is none.
    pub(super) fn read(self, wrong: impl FnOnce(T::Err) -> SettingsError) -> Result<T, SettingsError> {
        match self {
            Self::Read(value) => Ok(value),
            Self::Text(text) => text.parse().map_err(wrong),
        }
    }
}

fn no_value(key: &str, why: impl Display) -> SettingsError {
    SettingsError { message: format!("`{key}`: {why}"), hint: None }
}

/// The value of a key, where anybody says one.
pub(super) fn value<T: FromStr<Err: Display>>(
    key: &str,
    told: Option<Told<T>>,
) -> Result<Option<T>, SettingsError> {
    told.map(|told| told.read(|why| no_value(key, why))).transpose()
}

/// The value of a key, or its default, which is a text.
pub(super) fn or_default<T: FromStr<Err: Display>>(
    key: &str,
    value: Option<T>,
    default: &str,
) -> Result<T, SettingsError> {
    value.map_or_else(|| default.parse().map_err(|why| no_value(key, why)), Ok)
}

pub(super) fn duration(key: &str, text: Option<&str>, default: Duration) -> Result<Duration, SettingsError> {
    let Some(text) = text else { return Ok(default) };
    match parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err(error(format!("`{key}` is zero"), "every deadline needs a length, such as `10s`")),
        Err(why) => Err(error(format!("`{key}: {text}`: {why}"), "write it as `10s`, `1m30s` or `500ms`")),
    }
}

/// A duration that may be zero, which means that there is none.
pub(super) fn duration_or_none(
    key: &str,
    text: Option<&str>,
    default: Duration,
) -> Result<Duration, SettingsError> {
    match text {
        Some("0" | "0s") => Ok(Duration::ZERO),
        text => duration(key, text, default),
    }
}

pub(super) fn at_least_one(key: &str, told: Option<u32>, default: u32) -> Result<u32, SettingsError> {
    match told.unwrap_or(default) {
        0 => Err(error(format!("`{key}` is 0"), "at least 1")),
        most => Ok(most),
    }
}
