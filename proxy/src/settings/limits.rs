//! How long is waited, and how much there may be.

use std::time::Duration;

use serde::Deserialize;

use super::file::File;
use super::value::{at_least_one, duration, duration_or_none};
use super::{SettingsError, error};
use crate::plane::Limits;

/// For how long new connections are served after SIGTERM where others can reach a listener: so long it takes
/// until Kubernetes, or a load balancer, sends no more of them. With `drain` it fits into Kubernetes' own 30 s.
const LAME_DUCK: Duration = Duration::from_secs(5);

/// Deadlines; see [`Limits`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Timeouts {
    head: Option<String>,
    request: Option<String>,
    idle: Option<String>,
    body: Option<String>,
    write: Option<String>,
    connect: Option<String>,
    upstream_read: Option<String>,
    upstream_write: Option<String>,
    upstream_idle: Option<String>,
    grace: Option<String>,
    lame_duck: Option<String>,
    drain: Option<String>,
}

/// Bytes per second; see [`Limits`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MinRates {
    body: Option<u32>,
    write: Option<u32>,
}

/// For how long new connections are served after SIGTERM: nobody has to learn of it where only this machine can
/// reach the listeners, which are `local` then.
fn lame_duck(text: Option<&str>, local: bool) -> Result<Duration, SettingsError> {
    duration_or_none("timeouts.lameDuck", text, if local { Duration::ZERO } else { LAME_DUCK })
}

/// Those of a process whose listeners only this machine can reach, where `local` says so.
pub(super) fn checked(file: &File, local: bool) -> Result<Limits, SettingsError> {
    let default = Limits::default();
    let timeouts = &file.timeouts;
    let head_bytes = file.max_head_bytes.unwrap_or(default.head_bytes);
    if !(1024..=1024 * 1024).contains(&head_bytes) {
        return Err(error(format!("`maxHeadBytes` is {head_bytes}"), "between 1024 and 1048576"));
    }
    let connections = file.max_connections.unwrap_or(default.connections);
    if connections == 0 {
        return Err(error("`maxConnections` is 0", "at least 1"));
    }
    Ok(Limits {
        head: duration("timeouts.head", timeouts.head.as_deref(), default.head)?,
        idle: duration("timeouts.idle", timeouts.idle.as_deref(), default.idle)?,
        body: duration("timeouts.body", timeouts.body.as_deref(), default.body)?,
        body_rate: file.min_rates.body.unwrap_or(default.body_rate),
        write: duration("timeouts.write", timeouts.write.as_deref(), default.write)?,
        write_rate: file.min_rates.write.unwrap_or(default.write_rate),
        connect: duration("timeouts.connect", timeouts.connect.as_deref(), default.connect)?,
        upstream_read: duration(
            "timeouts.upstreamRead",
            timeouts.upstream_read.as_deref(),
            default.upstream_read,
        )?,
        upstream_write: duration(
            "timeouts.upstreamWrite",
            timeouts.upstream_write.as_deref(),
            default.upstream_write,
        )?,
        upstream_idle: duration(
            "timeouts.upstreamIdle",
            timeouts.upstream_idle.as_deref(),
            default.upstream_idle,
        )?,
        grace: duration("timeouts.grace", timeouts.grace.as_deref(), default.grace)?,
        lame_duck: lame_duck(timeouts.lame_duck.as_deref(), local)?,
        drain: duration("timeouts.drain", timeouts.drain.as_deref(), default.drain)?,
        head_bytes,
        body_bytes: file.max_body_bytes,
        request: timeouts
            .request
            .as_deref()
            .map(|text| duration("timeouts.request", Some(text), Duration::ZERO))
            .transpose()?,
        client_connections: file
            .max_connections_per_client
            .map(|most| at_least_one("maxConnectionsPerClient", Some(most), most))
            .transpose()?,
        connections,
        requests: at_least_one("maxRequests", file.max_requests, default.requests)?,
        upstream_requests: at_least_one(
            "maxUpstreamRequests",
            file.max_upstream_requests,
            default.upstream_requests,
        )?,
        held: at_least_one("maxHeld", file.max_held, default.held)?,
    })
}
