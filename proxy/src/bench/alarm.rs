//! Waking up on time. epoll waits whole milliseconds, which would be the latency that is measured;
//! a timer file descriptor wakes it within microseconds, without a thread that spins.

use std::io;
use std::time::Duration;

use mio::{Events, Poll, Token};

/// The token of the alarm's events.
pub(super) const ALARM: Token = Token(usize::MAX);

/// A timer that wakes a [`Poll`].
#[cfg(target_os = "linux")]
pub(super) struct Alarm {
    timer: rustix::fd::OwnedFd,
}

#[cfg(target_os = "linux")]
impl Alarm {
    /// A timer that wakes `poll`.
    pub(super) fn new(poll: &Poll) -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        use std::os::fd::AsRawFd;

        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let source = timer.as_raw_fd();
        poll.registry().register(&mut mio::unix::SourceFd(&source), ALARM, mio::Interest::READABLE)?;
        Ok(Self { timer })
    }

    /// Waits for events until `due` (if there is one) and at most `limit`.
    pub(super) fn wait(
        &self,
        poll: &mut Poll,
        events: &mut Events,
        due: Option<Duration>,
        limit: Duration,
    ) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        let limit = match due {
            Some(Duration::ZERO) => Duration::ZERO,
            Some(due) if due < limit => {
                let never = Timespec { tv_sec: 0, tv_nsec: 0 };
                let once = Timespec::try_from(due).map_err(io::Error::other)?;
                let once = Itimerspec { it_interval: never, it_value: once };
                // Each expiry is an edge of its own, so the count need not be read.
                timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
                limit
            }
            _ => limit,
        };
        poll.poll(events, Some(limit))
    }
}

/// Elsewhere the poll's own timeout is fine enough.
#[cfg(not(target_os = "linux"))]
pub(super) struct Alarm;

#[cfg(not(target_os = "linux"))]
impl Alarm {
    /// Nothing is needed.
    pub(super) fn new(_: &Poll) -> io::Result<Self> {
        Ok(Self)
    }

    /// Waits for events until `due` (if there is one) and at most `limit`.
    pub(super) fn wait(
        &self,
        poll: &mut Poll,
        events: &mut Events,
        due: Option<Duration>,
        limit: Duration,
    ) -> io::Result<()> {
        poll.poll(events, Some(due.unwrap_or(limit).min(limit)))
    }
}
