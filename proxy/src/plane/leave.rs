//! When streams and tunnels end that nobody ends: those whose environment is gone, after a grace.
//!
//! Short exchanges end on the snapshot that they were decided in; these would hold on to a deleted
//! overlay for as long as they like.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use overlane_config::name::EnvironmentId;
use overlane_config::table::Environment;
use tokio::time::sleep;

use super::Plane;
use crate::clock;
use crate::upstream::Upstream;

/// How often it is looked whether an overlay expires later, or earlier, than it was said to.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Completes when a stream has to end.
pub type Leave = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Completes a grace after `environment`, where `upstream` is its service, no longer has it or has
/// expired.
#[must_use]
pub fn leave(plane: Arc<Plane>, upstream: Arc<Upstream>, environment: Option<EnvironmentId>) -> Leave {
    Box::pin(async move {
        tokio::select! {
            () = upstream.retired() => {}
            () = expired(&plane, environment.as_ref()) => {}
        }
        sleep(plane.limits.grace).await;
    })
}

async fn expired(plane: &Plane, environment: Option<&EnvironmentId>) {
    let Some(id) = environment else {
        return std::future::pending().await;
    };
    loop {
        let expires = match plane.published.load().table.environment(id.as_str()) {
            Some(Environment::Overlay(overlay)) => overlay.served_until,
            _ => None,
        };
        let left = expires.map(|at| Duration::from_millis(at.0.saturating_sub(clock::now().0)));
        match left {
            Some(Duration::ZERO) => return,
            left => sleep(left.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN)).await,
        }
    }
}
