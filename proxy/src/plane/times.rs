//! When a request waited for its upstream, and so what of its time was the proxy's own.

use std::time::{Duration, Instant};

/// The moments of a request, as they come. The clock is read for each once; a request that passes in one piece has two of
/// them: when it began to wait for its upstream, and when the answer's head was there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// When all that was there of it had gone upstream.
    sent: Option<Instant>,
    /// When the head of the response was there.
    answered: Option<Instant>,
    /// When all that had come of the response with its head was handed on, where more followed.
    handed_on: Option<Instant>,
}

impl Times {
    /// It waits, for whomever; says when, where that is of interest and the clock was read.
    pub fn pause(&mut self) -> Option<Instant> {
        let at = if self.answered.is_none() { &mut self.sent } else { &mut self.handed_on };
        match at {
            Some(_) => None,
            None => Some(*at.insert(Instant::now())),
        }
    }

    /// The head of the response is there.
    pub fn answer(&mut self) {
        self.answered = Some(Instant::now());
    }

    /// How long its upstream took until its head was there; nothing where none came.
    #[must_use]
    pub fn upstream(&self) -> Option<Duration> {
        let answered = self.answered?;
        Some(self.sent.map_or(Duration::ZERO, |sent| answered.saturating_duration_since(sent)))
    }

    /// How much later its client had the response's head, and what came with it, than it would have had it from its
    /// upstream: the time before it waited and the time after, but not that of the rest of a long response. Nothing where the
    /// upstream did not answer.
    #[must_use]
    pub fn added(&self, started: Instant, ended: Instant) -> Option<Duration> {
        let answered = self.answered?;
        let before = self.sent.unwrap_or(answered).saturating_duration_since(started);
        Some(before + self.handed_on.unwrap_or(ended).saturating_duration_since(answered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_what_the_upstream_did_not_take() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let short = Times { sent: Some(at(2)), answered: Some(at(102)), handed_on: None };
        assert_eq!(short.upstream(), Some(Duration::from_millis(100)));
        assert_eq!(short.added(start, at(103)), Some(Duration::from_millis(3)));
        let long = Times { handed_on: Some(at(104)), ..short };
        assert_eq!(long.added(start, at(9000)), Some(Duration::from_millis(4)), "the rest is not ours");
        let at_once = Times { sent: None, ..short };
        assert_eq!(
            (at_once.upstream(), at_once.added(start, at(102))),
            (Some(Duration::ZERO), Some(Duration::from_millis(102)))
        );
        let unanswered = Times { answered: None, ..short };
        assert_eq!((unanswered.upstream(), unanswered.added(start, at(500))), (None, None));
    }

    #[test]
    fn each_pause_counts_once_before_the_answer_and_once_after() {
        let mut times = Times::default();
        assert!(times.pause().is_some() && times.pause().is_none());
        times.answer();
        assert!(times.pause().is_some() && times.pause().is_none());
        assert!(times.sent <= times.answered && times.answered <= times.handed_on);
    }
}
