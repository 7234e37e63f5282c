//! Panics of the proxies' workers. A worker survives them, so that nobody would see them: bytes from the network must
//! not cause any.

use std::panic;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

/// What the threads of workers are named like.
const WORKERS: &str = "worker-";

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes from now on what panics on a worker's thread.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name().is_some_and(|name| name.starts_with(WORKERS)) {
                SEEN.lock().unwrap_or_else(PoisonError::into_inner).push(info.to_string());
            }
            before(info);
        }));
    });
}

/// What panicked on workers' threads in this process until now: whoever's case it was, all that end later tell it.
fn seen() -> Vec<String> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// # Panics
/// Where a worker did. Not where the test has failed already.
pub(crate) fn assert_none() {
    let seen = seen();
    assert!(seen.is_empty() || thread::panicking(), "workers panicked: {seen:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_a_workers_thread_is_seen_and_no_other() {
        watch();
        for name in ["someone", "worker-7"] {
            let thread =
                thread::Builder::new().name(name.to_owned()).spawn(move || panic!("of {name}")).unwrap();
            thread.join().unwrap_err();
        }
        let seen = seen();
        assert!(matches!(&seen[..], [only] if only.ends_with("of worker-7")), "{seen:?}");
    }
}
