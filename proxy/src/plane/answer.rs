//! The answers that the proxy makes itself: they say so, why, and what to change.

use http::{HeaderName, StatusCode, header};
use overlane_config::route::Refusal;
use pingora_http::ResponseHeader;
use serde_json::json;

/// The name under which this proxy appears in `Proxy-Status` (RFC 9209).
const PROXY: &str = "overlane";

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The proxy error type (RFC 9209, section 2.3).
    pub error: &'static str,
    /// A word for programs: of the closed list of reasons, where it is one.
    pub reason: &'static str,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// `path:line:column` of the blueprint line to change.
    pub declared: Option<String>,
}

impl From<&Refusal> for Answer {
    fn from(refusal: &Refusal) -> Self {
        Self {
            status: refusal.problem.status(),
            error: refusal.problem.proxy_error(),
            reason: refusal.problem.as_str(),
            message: refusal.message.clone(),
            hint: refusal.hint.clone(),
            declared: refusal.declared.as_ref().map(ToString::to_string),
        }
    }
}

impl Answer {
    /// An answer without hint and blueprint line.
    #[must_use]
    pub fn plain(status: u16, error: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, reason, message: message.into(), hint: None, declared: None }
    }

    /// `Proxy-Status: overlane;error=…;details="…"`. The details are ASCII without quotes.
    fn proxy_status(&self) -> String {
        let clean = |c: char| {
            if c.is_ascii_graphic() && c != '"' && c != '\\' || c == ' ' { c } else { '\'' }
        };
        let details: String = self.message.chars().take(200).map(clean).collect();
        format!("{PROXY};error={};details=\"{}: {details}\"", self.error, self.reason)
    }

    /// The body and its type, by what the client accepts: JSON (RFC 9457) where it says so, else text.
    #[must_use]
    pub fn body(&self, accept: &str) -> (String, &'static str) {
        if accept.contains("json") {
            let body = json!({
                "type": "about:blank",
                "title": StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason()),
                "status": self.status,
                "reason": self.reason,
                "detail": self.message,
                "hint": self.hint,
                "blueprint": self.declared,
                "proxy": PROXY,
            });
            return (format!("{body}\n"), "application/problem+json");
        }
        let mut text = format!("overlane: {} ({})\n", self.message, self.reason);
        for (label, value) in [("hint", &self.hint), ("blueprint", &self.declared)] {
            if let Some(value) = value {
                text.push_str(&format!("{label}: {value}\n"));
            }
        }
        (text, "text/plain; charset=utf-8")
    }

    /// The head for a body of `length` bytes.
    ///
    /// # Errors
    /// Never in practice: status and values are valid by construction.
    pub fn head(&self, content_type: &str, length: usize) -> pingora_error::Result<ResponseHeader> {
        let mut head = ResponseHeader::build(self.status, Some(6))?;
        head.insert_header(header::CONTENT_TYPE, content_type)?;
        head.insert_header(header::CONTENT_LENGTH, length.to_string())?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        head.insert_header(HeaderName::from_static("proxy-status"), self.proxy_status())?;
        if self.status == 503 {
            head.insert_header(header::RETRY_AFTER, "1")?;
        }
        Ok(head)
    }

    /// The whole answer as HTTP/1.1 bytes that close the connection, for heads that no engine may see.
    #[must_use]
    pub fn closing_bytes(&self) -> Vec<u8> {
        let (body, content_type) = self.body("");
        let phrase = StatusCode::from_u16(self.status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("Error");
        let (status, length, proxy_status) = (self.status, body.len(), self.proxy_status());
        format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nProxy-Status: {proxy_status}\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_reaches_no_header_unescaped() {
        let answer =
            Answer::plain(400, "http_request_error", "invalid-key", "header `x`: `a\r\nb\"é\\` is not");
        let bytes = String::from_utf8(answer.closing_bytes()).expect("text");
        let head = bytes.split("\r\n\r\n").next().expect("head");
        let line = head.lines().find(|line| line.starts_with("Proxy-Status")).expect("line");
        assert_eq!(
            line,
            "Proxy-Status: overlane;error=http_request_error;details=\"invalid-key: header `x`: `a''b'''` is not\""
        );
    }

    #[test]
    fn json_is_answered_where_it_is_accepted() {
        let answer = Answer::plain(503, "destination_unavailable", "pending", "no address");
        let (body, content_type) = answer.body("application/json");
        let body: serde_json::Value = serde_json::from_str(&body).expect("json");
        assert_eq!((content_type, &body["reason"]), ("application/problem+json", &json!("pending")));
        assert_eq!(answer.body("*/*").0, "overlane: no address (pending)\n");
    }
}
