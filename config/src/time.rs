//! Points in time. The core has no clock: whoever calls it says what time it is.

use std::fmt;
use std::time::Duration;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The point in time that lies `span` later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// RFC 3339 in UTC, to the second; what is later than that can say is the last second that it can, so that it is read again.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0 / 1000).unwrap_or(i64::MAX);
        let last = jiff::Timestamp::MAX.as_second();
        let timestamp = jiff::Timestamp::from_second(seconds.min(last)).unwrap_or_default();
        write!(f, "{timestamp}")
    }
}

/// Reads `2h30m`, `90s`, `1 day` or ISO 8601 (`PT2H`); jiff's friendly format, without months and years.
///
/// # Errors
/// What is wrong with it, as a message.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = match text.parse::<jiff::Span>() {
        Ok(span) => span
            .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
            .map_err(|_| "months and years differ in length; write days".to_owned())?,
        Err(_) => return Err("not a duration".to_owned()),
    };
    Duration::try_from(span).map_err(|_| "a duration cannot be negative".to_owned())
}

/// A duration as [`parse_duration`] reads it, such as `1h 30m`.
#[must_use]
pub fn written(duration: Duration) -> String {
    match jiff::SignedDuration::try_from(duration) {
        Ok(duration) => format!("{duration:#}"),
        Err(_) => format!("{duration:?}"),
    }
}

/// Reads an RFC 3339 timestamp with its offset.
///
/// # Errors
/// What is wrong with it, as a message.
pub fn parse_timestamp(text: &str) -> Result<UnixMillis, String> {
    let timestamp: jiff::Timestamp = text.parse().map_err(|_| "not an RFC 3339 timestamp".to_owned())?;
    let millis = u64::try_from(timestamp.as_millisecond()).map_err(|_| "before 1970".to_owned())?;
    Ok(UnixMillis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_friendly_or_iso_and_never_negative() {
        for (text, expected) in [
            ("4h", Ok(14_400_000)),
            ("1h30m", Ok(5_400_000)),
            ("1 day", Ok(86_400_000)),
            ("2w", Ok(1_209_600_000)),
            ("PT2H", Ok(7_200_000)),
            ("250ms", Ok(250)),
            ("0s", Ok(0)),
            ("-1s", Err("a duration cannot be negative")),
            ("1mo", Err("months and years differ in length; write days")),
            ("1y", Err("months and years differ in length; write days")),
            ("4", Err("not a duration")),
            ("", Err("not a duration")),
            ("99999999999999999999h", Err("not a duration")),
        ] {
            let read = parse_duration(text).map(|duration| duration.as_millis());
            assert_eq!(read.as_ref().copied().map_err(String::as_str), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["4h", "1h 30m", "90s", "1500ms"] {
            let duration = parse_duration(text).expect(text);
            assert_eq!(parse_duration(&written(duration)), Ok(duration), "{}", written(duration));
        }
        assert_eq!(written(Duration::from_secs(14_400)), "4h");
    }

    #[test]
    fn points_in_time_carry_their_offset() {
        for (text, expected) in [
            ("2027-01-31T18:00:00Z", Ok(1_801_418_400_000)),
            ("2027-01-31T19:00:00.5+01:00", Ok(1_801_418_400_500)),
            ("1969-12-31T23:59:59Z", Err("before 1970")),
            ("2027-01-31", Err("not an RFC 3339 timestamp")),
            ("2027-01-31T18:00:00", Err("not an RFC 3339 timestamp")),
            ("tomorrow", Err("not an RFC 3339 timestamp")),
        ] {
            let read = parse_timestamp(text).map(|at| at.0);
            assert_eq!(read.as_ref().copied().map_err(String::as_str), expected, "{text}");
        }
    }

    #[test]
    fn no_time_is_too_late_to_be_added_to_or_shown() {
        assert_eq!(UnixMillis(u64::MAX).after(Duration::MAX), UnixMillis(u64::MAX));
        assert_eq!(UnixMillis(1500).after(Duration::from_secs(1)).to_string(), "1970-01-01T00:00:02Z");
        let last = UnixMillis(u64::MAX).to_string();
        assert_eq!(last, "9999-12-30T22:00:00Z");
        assert_eq!(
            parse_timestamp(&last).map(|at| at.to_string()),
            Ok(last),
            "what is written is read again"
        );
    }
}
