//! Pauses between attempts: each is a random part of what it may be, so that many who failed together do not come back
//! together, and that doubles with each up to a bound ("full jitter": M. Brooker, Exponential Backoff And Jitter, 2015).

use std::time::Duration;

/// The pauses of one who tries again and again.
#[derive(Debug)]
pub(crate) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// The first may be so long, and the later ones up to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// How long to wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let most = self.next;
        self.next = (most * 2).min(self.longest);
        most.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_part_of_a_time_that_doubles_up_to_a_bound() {
        let mut pauses = Pauses::new(Duration::from_millis(200), Duration::from_secs(1));
        for most in [200, 400, 800, 1000, 1000] {
            assert!(pauses.next() <= Duration::from_millis(most));
        }
    }
}
