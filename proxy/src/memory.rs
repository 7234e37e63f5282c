//! Memory goes back to the system also while nothing happens.
//!
//! The allocator (mimalloc) returns what was freed a second ago or earlier, but looks for it only when it frees a page of
//! its own. A process that became idle at its busiest moment would keep what it had until the next requests.

use std::hint::black_box;
use std::time::Duration;

/// How often the allocator is made to look.
const EVERY: Duration = Duration::from_secs(2);
/// Larger than what it keeps pages for: freed, it goes back at once. Nobody writes to it, so it costs no memory.
const LARGE: usize = 8 * 1024 * 1024;

/// Makes the allocator look again and again; never ends.
pub async fn give_back() {
    loop {
        tokio::time::sleep(EVERY).await;
        drop(black_box(Vec::<u8>::with_capacity(LARGE)));
    }
}
