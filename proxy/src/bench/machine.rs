//! What measured: figures mean little without it.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock;

/// The machine and the build that figures come from.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// The processor's name, where it can be read.
    pub processor: Option<String>,
    /// The kernel, where it can be read, or the operating system.
    pub kernel: String,
    /// How many threads wanted to run in the last minute, before anything was measured.
    pub load_average: Option<f64>,
    /// Our version.
    pub version: &'static str,
    /// Whether this build was optimised.
    pub optimised: bool,
    /// When it was looked at, RFC 3339.
    pub at: String,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let processor = read("/proc/cpuinfo").and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let kernel = read("/proc/sys/kernel/osrelease")
            .map_or_else(|| std::env::consts::OS.to_owned(), |release| format!("Linux {}", release.trim()));
        let load_average =
            read("/proc/loadavg").and_then(|text| text.split_ascii_whitespace().next()?.parse().ok());
        Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            processor,
            kernel,
            load_average,
            version: env!("CARGO_PKG_VERSION"),
            optimised: !cfg!(debug_assertions),
            at: clock::now().to_string(),
        }
    }

    /// It as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "cores": self.cores,
            "processor": self.processor,
            "kernel": self.kernel,
            "load_average": self.load_average,
            "version": self.version,
            "optimised": self.optimised,
            "at": self.at,
        })
    }
}

/// The time that this process's threads whose names begin with `name` spent on a core; `None` where
/// the system does not tell.
#[must_use]
pub fn cpu(name: &str) -> Option<Duration> {
    let mut spent = None;
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        // A thread may end meanwhile.
        let Ok(own) = fs::read_to_string(task.path().join("comm")) else { continue };
        if own.starts_with(name) {
            let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanos = stat.split_ascii_whitespace().next()?.parse().ok()?;
            *spent.get_or_insert(Duration::ZERO) += Duration::from_nanos(nanos);
        }
    }
    spent
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_thread_is_told_by_its_name() {
        assert_eq!(cpu("nobody-has-it"), None);
        let (sender, receiver) = std::sync::mpsc::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let body = move || {
            let _ = sender.send(std::hint::black_box((0..100_000_u64).fold(0, |a, b| a ^ b)));
            let _ = wait.recv();
        };
        let thread = std::thread::Builder::new().name("counted-thread".to_owned()).spawn(body).unwrap();
        receiver.recv().unwrap();
        // The kernel tells it once the thread waits.
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while cpu("counted-thr").unwrap().is_zero() {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
        drop(done);
        thread.join().unwrap();
    }
}
