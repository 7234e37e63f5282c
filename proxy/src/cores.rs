//! Work on all cores, for the few moments when a whole store is read.

use std::panic::resume_unwind;
use std::thread;

/// So many items are worth a thread.
const FEW: usize = 500;

/// What `each` makes of the items, in their order.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = cores.min(items.len().div_ceil(FEW)).max(1);
    let some = |items: &[T]| items.iter().map(&each).collect::<Vec<_>>();
    let (first, rest) = items.split_at(items.len().div_ceil(threads));
    thread::scope(|scope| {
        let spawn = |items| (items, thread::Builder::new().spawn_scoped(scope, move || some(items)));
        let others: Vec<_> = rest.chunks(first.len().max(1)).map(spawn).collect();
        let mut all = some(first);
        for (items, other) in others {
            all.extend(match other {
                Ok(other) => other.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // No thread is to be had.
                Err(_) => some(items),
            });
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_and_in_order() {
        for count in [0, 1, FEW, FEW + 1, 10 * FEW + 7] {
            let items: Vec<_> = (0..count).collect();
            let expected: Vec<_> = items.iter().map(|item| item * 2).collect();
            assert_eq!(map(&items, |item| item * 2), expected);
        }
    }
}
