//! Where keys travel, and by what they are restored.

use std::path::Path;
use std::time::Duration;

use overlane_config::carrier::{CarrierError, Carriers, HostPattern};
use serde::Deserialize;

use super::file::File;
use super::value::duration;
use super::{SettingsError, error};
use crate::correlation::CorrelationSettings;

/// Ages of traces are counted in 32 bits of milliseconds.
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a key is restored by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RestoredBy {
    Trace,
    RequestId,
}

/// See [`CorrelationSettings`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CorrelationFile {
    by: Option<Vec<RestoredBy>>,
    traces: Option<usize>,
    ttl: Option<String>,
}

/// See [`Carriers`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CarriersFile {
    read: Option<Vec<String>>,
    write: Option<Vec<String>>,
}

/// The carriers of a settings file, or the default ones.
///
/// # Errors
/// A file that cannot be read, or a carrier that cannot be.
pub fn carriers_of(file: Option<&Path>) -> Result<Carriers, SettingsError> {
    let file = file.map(File::read).transpose()?.unwrap_or_default();
    carriers(&file.carriers, &file.keep_for)
}

pub(super) fn carriers(file: &CarriersFile, keep_for: &[String]) -> Result<Carriers, SettingsError> {
    let CarriersFile { read, write } = file;
    let mut carriers = Carriers::parse(read.as_deref(), write.as_deref()).map_err(|wrong| {
        let CarrierError { place, message, hint } = wrong;
        error(format!("`carriers.{place}`: {message}"), hint)
    })?;
    let hosts = keep_for.iter().enumerate();
    let hosts = hosts.map(|(number, text)| {
        text.parse::<HostPattern>().map_err(|why| {
            error(format!("`keepFor[{number}]`: {why}"), "name hosts that are trusted with overlay keys")
        })
    });
    carriers.keep_for = hosts.collect::<Result<_, _>>()?;
    Ok(carriers)
}

pub(super) fn correlation(file: &CorrelationFile) -> Result<CorrelationSettings, SettingsError> {
    let default = CorrelationSettings::default();
    let by = |what| file.by.as_ref().map(|by| by.contains(&what));
    let traces = file.traces.unwrap_or(default.traces);
    if !(1..=1 << 24).contains(&traces) {
        return Err(error(format!("`correlation.traces` is {traces}"), "between 1 and 16777216"));
    }
    let ttl = duration("correlation.ttl", file.ttl.as_deref(), default.ttl)?;
    if ttl > MAX_TTL {
        return Err(error("`correlation.ttl` is longer than 7 days", "at most `7d`"));
    }
    Ok(CorrelationSettings {
        by_trace: by(RestoredBy::Trace).unwrap_or(default.by_trace),
        by_request_id: by(RestoredBy::RequestId).unwrap_or(default.by_request_id),
        traces,
        ttl,
    })
}
