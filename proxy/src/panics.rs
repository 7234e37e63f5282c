//! Panics in our own code: contained where one exchange or one file is concerned, counted, and logged with
//! their place (docs/decisions/0023-panics.md).

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use tokio::task::JoinError;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Counts and logs from now on what panics in this process; once is enough.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            COUNT.fetch_add(1, Relaxed);
            // Where nobody logs it is told as it would be without us.
            match tracing::enabled!(tracing::Level::ERROR) {
                true => log(info),
                false => before(info),
            }
        }));
    });
}

/// How many there were.
#[must_use]
pub fn count() -> u64 {
    COUNT.load(Relaxed)
}

/// What `work` makes; `None` where it panics. What it was given is not to be used after that.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Has a panic of a task go on in whoever waits for it, and cannot do without. It is counted already. Without one
/// the task's runtime is gone.
pub(crate) fn pass_on(ended: JoinError) {
    if let Ok(panic) = ended.try_into_panic() {
        panic::resume_unwind(panic);
    }
}

fn log(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let formatted = payload.downcast_ref::<String>().map(String::as_str);
    let why = formatted.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default();
    let thread = thread::current();
    let backtrace = Backtrace::capture();
    let captured = backtrace.status() == BacktraceStatus::Captured;
    let backtrace = captured.then(|| backtrace.to_string());
    tracing::error!(place, why, thread = thread.name(), backtrace, "a panic: please report it");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_and_counted() {
        watch();
        let before = count();
        assert_eq!((contained(|| 1), contained(|| -> u8 { panic!("on purpose") })), (Some(1), None));
        assert!(count() > before);
    }
}
