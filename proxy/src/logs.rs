//! The log of this process, on standard error: from which level on can be changed while it runs.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Where the filter is changed: one for the process, as its log is.
static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// What a filter looks like.
const WRITE: &str = "write error, warn, info or debug, or TARGET=LEVEL, several by commas";

/// Logs from this level on where `OVERLANE_LOG` and `RUST_LOG` say nothing else: as text on a terminal, else as JSON lines.
/// Somebody who embeds us may log already; then theirs stays.
pub fn start(level: &str) {
    let told =
        ["OVERLANE_LOG", "RUST_LOG"].into_iter().find_map(|name| Some((name, std::env::var(name).ok()?)));
    let (filter, wrong) = match told.as_ref().map(|(name, text)| (name, read(text))) {
        Some((_, Ok(filter))) => (filter, None),
        Some((name, Err(why))) => (EnvFilter::new(level), Some(format!("{name}: {why}"))),
        None => (EnvFilter::new(level), None),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let filtered = tracing_subscriber::registry().with(filter).with(without_what_is_told_twice());
    let text = layer().with_writer(std::io::stderr).with_target(false);
    let started = match std::io::stderr().is_terminal() {
        true => filtered.with(text).try_init(),
        false => filtered.with(text.json().flatten_event(true)).try_init(),
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
    if let Some(why) = wrong {
        tracing::warn!("{why}; what is logged begins at `{level}`");
    }
}

/// Leaves out the errors of Kubernetes' client: it logs each request that failed, and what that means for the store our own
/// lines say, at the level that it deserves.
fn without_what_is_told_twice<S: Subscriber>() -> impl Layer<S> {
    filter_fn(|line: &Metadata<'_>| {
        *line.level() != Level::ERROR || !line.target().starts_with("kube_client")
    })
}

fn read(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let known = |part: &str| {
        part.rsplit('=').next().is_some_and(|level| LEVELS.contains(&level.trim().to_lowercase().as_str()))
    };
    let wrong = || format!("`{}` is no level of a log; {WRITE}", text.escape_debug());
    if !text.split(',').all(known) {
        return Err(wrong());
    }
    EnvFilter::try_new(text).map_err(|_| wrong())
}

/// What is logged; `None` where this process does not log by itself.
#[must_use]
pub fn filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

/// Logs by another filter from now on.
///
/// # Errors
/// It is none, or this process does not log by itself.
pub fn change(text: &str) -> Result<(), String> {
    let filter = read(text)?;
    let handle = FILTER.get().ok_or("this process does not log by itself")?;
    handle.reload(filter).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was logged.
    #[derive(Clone, Default)]
    struct Logged(Arc<Mutex<Vec<u8>>>);

    impl Write for Logged {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_client_of_kubernetes_says_of_failures_is_not_said_a_second_time() {
        let logged = Logged::default();
        let own = logged.clone();
        let lines = layer().with_writer(move || own.clone());
        let subscriber = tracing_subscriber::registry().with(without_what_is_told_twice()).with(lines);
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "kube_client::client::builder", "failed with status 503");
            tracing::warn!(target: "kube_client::client::builder", "something else");
            tracing::error!("the store cannot be read");
        });
        let text = String::from_utf8(logged.0.lock().expect("nobody panicked").clone()).expect("text");
        assert!(text.contains("something else") && text.contains("cannot be read"), "{text}");
        assert!(!text.contains("503"), "{text}");
    }

    #[test]
    fn a_filter_is_levels_and_what_is_none_is_said() {
        for right in ["info", "DEBUG", "warn,overlane::plane=debug", "off", "h2=info, debug"] {
            read(right).expect(right);
        }
        for wrong in ["", "verbose", "info,", "overlane=loud", "=", "info;debug"] {
            let why = read(wrong).expect_err(wrong);
            assert!(why.ends_with(WRITE), "{why}");
        }
    }
}
