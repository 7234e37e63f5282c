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

/// RFC 3339 in UTC, to the second.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0 / 1000).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_second(seconds) {
            Ok(timestamp) => write!(f, "{timestamp}"),
            Err(_) => f.write_str("the end of time"),
        }
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

/// Reads an RFC 3339 timestamp with its offset.
///
/// # Errors
/// What is wrong with it, as a message.
pub fn parse_timestamp(text: &str) -> Result<UnixMillis, String> {
    let timestamp: jiff::Timestamp = text.parse().map_err(|_| "not an RFC 3339 timestamp".to_owned())?;
    let millis = u64::try_from(timestamp.as_millisecond()).map_err(|_| "before 1970".to_owned())?;
    Ok(UnixMillis(millis))
}
