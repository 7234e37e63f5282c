//! The answers that the proxy makes itself: they say so, why, and what to change.

use http::StatusCode;
use overlane_config::route::{ROUTE_HEADER, Refusal};
use pingora_http::ResponseHeader;
use serde_json::json;

use super::edge::{html, is_navigation};
use super::grpc;
use super::h2::Unprocessed;
use super::overload::OVERLOAD;
use crate::h1::request::Head;
use crate::upstream::Address;

/// The name under which this proxy appears in `Proxy-Status` (RFC 9209).
const PROXY: &str = "overlane";
/// Pages of ours load nothing, run nothing and are framed by nobody.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

/// The word for what is larger than it may be.
pub const TOO_LARGE: &str = "too-large";

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
    pub declared: Option<Box<str>>,
    /// What few answers have.
    pub more: Option<Box<More>>,
}

/// What few answers have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct More {
    /// The receipts to give with it, where they are not only the proxy's own.
    pub receipts: Option<Box<str>>,
    /// Other fields of its head.
    pub fields: Vec<(&'static str, String)>,
    /// Where to go from here.
    pub links: Vec<Link>,
    /// All of it as bytes of HTTP/1.1, where somebody else gives it.
    pub whole: Option<Box<[u8]>>,
}

/// A way to go on from an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where it leads, in words.
    pub text: String,
    /// Its address.
    pub to: String,
}

impl From<&Refusal> for Answer {
    fn from(refusal: &Refusal) -> Self {
        Self {
            status: refusal.problem.status(),
            error: refusal.problem.proxy_error(),
            reason: refusal.problem.as_str(),
            message: refusal.message.clone(),
            hint: refusal.hint.clone(),
            declared: refusal.declared.as_ref().map(|declared| declared.to_string().into()),
            more: None,
        }
    }
}

/// What ended an exchange before its response was whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The upstream did not answer, or take the request, in time.
    UpstreamSilent,
    /// What the upstream sent is not valid HTTP.
    UpstreamMalformed,
    /// The upstream closed the connection before its response was whole.
    UpstreamClosed,
    /// The request's body did not arrive in time.
    BodySlow,
    /// The request's body is malformed, or ended too early.
    BodyMalformed,
    /// The request's body is larger than is allowed.
    BodyTooLarge,
    /// The request cannot be said in the upstream's protocol.
    Unsayable,
    /// The client is gone, or does not read.
    ClientGone,
    /// The proxy itself failed.
    Internal,
    /// The answer is not what the request requires.
    Unmet,
    /// The time that the client gave it is over.
    Late,
    /// The time that any request has is over.
    Overdue,
    /// The upstream said that it did nothing about the request.
    Unprocessed(Unprocessed),
    /// The environment of a stream is gone.
    Gone,
}

impl Failure {
    /// The word for it in the log.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::UpstreamSilent | Self::UpstreamMalformed | Self::UpstreamClosed | Self::Unprocessed(_) => {
                "unhealthy"
            }
            Self::BodySlow | Self::Late | Self::Overdue => "timeout",
            Self::BodyTooLarge => TOO_LARGE,
            Self::BodyMalformed | Self::Unsayable => "malformed",
            Self::ClientGone => "client-gone",
            Self::Internal => "internal",
            Self::Unmet => "unmet",
            Self::Gone => "gone",
        }
    }

    /// Whether the upstream is to blame.
    #[must_use]
    pub fn is_upstreams(self) -> bool {
        matches!(
            self,
            Self::UpstreamSilent | Self::UpstreamMalformed | Self::UpstreamClosed | Self::Unprocessed(_)
        )
    }

    /// The answer, where there is somebody to answer; `upstream` is the address that it was sent to.
    #[must_use]
    pub fn answer(self, upstream: Option<&Address>) -> Option<Answer> {
        let at = upstream.map_or_else(String::new, |address| format!(" at {address}"));
        let (status, error, message) = match self {
            Self::UpstreamSilent => {
                (504, "http_response_timeout", format!("the upstream{at} did not answer in time"))
            }
            Self::UpstreamMalformed => (
                502,
                "http_protocol_error",
                format!("the upstream{at} gave an answer that is not valid HTTP"),
            ),
            Self::UpstreamClosed => (
                502,
                "connection_terminated",
                format!("the upstream{at} closed the connection before it answered"),
            ),
            Self::Unprocessed(_) => {
                (503, "connection_terminated", format!("the upstream{at} refused the stream unprocessed"))
            }
            Self::BodySlow => {
                (408, "http_request_error", "the request's body did not arrive in time".to_owned())
            }
            Self::BodyTooLarge => {
                (413, "http_request_error", "the request's body is larger than is allowed".to_owned())
            }
            Self::BodyMalformed => (400, "http_request_error", "the request's body is malformed".to_owned()),
            Self::Gone => {
                (503, "destination_unavailable", "the environment of this stream is gone".to_owned())
            }
            Self::Unsayable => (
                400,
                "http_request_error",
                format!("the request cannot be said in HTTP/2, as the upstream{at} wants it"),
            ),
            // What is not met says so itself.
            Self::ClientGone | Self::Unmet => return None,
            Self::Internal => (500, "proxy_internal_error", "the proxy failed".to_owned()),
            Self::Late => (504, "http_response_timeout", "the call's own deadline has passed".to_owned()),
            Self::Overdue => (504, "http_response_timeout", "the time that a request has is over".to_owned()),
        };
        Some(Answer::plain(status, error, self.reason(), message))
    }
}

/// The form in which a client reads an answer of ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// RFC 9457, for who accepts JSON.
    Json,
    /// A page, for a browser that shows what comes.
    Page,
    /// A head that ends a call of gRPC ("Trailers-Only").
    Grpc,
}

impl Form {
    /// The form for who sent this request.
    #[must_use]
    pub fn of(head: &Head<'_>) -> Self {
        match () {
            () if grpc::is_call(head) => Self::Grpc,
            () if is_navigation(head) => Self::Page,
            () if head.accepts_json() => Self::Json,
            () => Self::Text,
        }
    }
}

/// How an answer is to be put.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner<'m> {
    /// The form.
    pub form: Form,
    /// The receipts, where the request carried a key.
    pub receipts: Option<&'m str>,
    /// Whether the connection ends with it.
    pub close: bool,
    /// Whether it answers a HEAD request: without its body.
    pub to_head: bool,
    /// Field lines that it has besides, each with its end.
    pub lines: &'m [u8],
}

impl Answer {
    /// An answer without hint and blueprint line.
    #[must_use]
    pub fn plain(status: u16, error: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, reason, message: message.into(), hint: None, declared: None, more: None }
    }

    /// The same for strangers, who are not told what there is.
    #[must_use]
    pub fn curt(self) -> Self {
        Self { message: phrase(self.status).to_ascii_lowercase(), hint: None, declared: None, ..self }
    }

    /// The same with more to it.
    #[must_use]
    pub fn with(self, more: More) -> Self {
        Self { more: Some(Box::new(more)), ..self }
    }

    /// All of it, where somebody else gives it.
    #[must_use]
    pub fn whole(&self) -> Option<&[u8]> {
        self.more.as_ref()?.whole.as_deref()
    }

    /// Where to go from here.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        self.more.as_ref().map_or(&[], |more| &more.links)
    }

    /// The receipts to give with it, where they are not only the proxy's own.
    #[must_use]
    pub fn receipts(&self) -> Option<&str> {
        self.more.as_ref()?.receipts.as_deref()
    }

    /// `Proxy-Status: overlane;error=…;details="…"`. The details are ASCII without quotes.
    fn proxy_status(&self) -> String {
        let clean = |c: char| {
            if c.is_ascii_graphic() && c != '"' && c != '\\' || c == ' ' { c } else { '\'' }
        };
        let details: String = self.message.chars().take(200).map(clean).collect();
        format!("{PROXY};error={};details=\"{}: {details}\"", self.error, self.reason)
    }

    /// The body and its type.
    #[must_use]
    pub fn body(&self, form: Form) -> (String, &'static str) {
        match form {
            _ if self.status == 204 => (String::new(), "text/plain; charset=utf-8"),
            Form::Text => (self.text(), "text/plain; charset=utf-8"),
            Form::Json => (self.json(), "application/problem+json"),
            Form::Page => (html(self.status, phrase(self.status), self), "text/html; charset=utf-8"),
            Form::Grpc => (String::new(), "application/grpc"),
        }
    }

    fn json(&self) -> String {
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
        format!("{body}\n")
    }

    fn text(&self) -> String {
        let mut text = format!("overlane: {} ({})\n", self.message, self.reason);
        for (label, value) in [("hint", self.hint.as_deref()), ("blueprint", self.declared.as_deref())] {
            if let Some(value) = value {
                text.push_str(&format!("{label}: {value}\n"));
            }
        }
        for Link { text: what, to } in self.links() {
            text.push_str(&format!("{what}: {to}\n"));
        }
        text
    }

    /// The status of HTTP: a call of gRPC is answered with 200, whatever is said.
    #[must_use]
    pub fn status_in(&self, form: Form) -> u16 {
        if form == Form::Grpc { 200 } else { self.status }
    }

    /// The fields of the head for a body of `length` bytes.
    fn fields(&self, form: Form, content_type: &str, length: usize) -> Vec<(&'static str, String)> {
        let mut fields =
            vec![("Content-Type", content_type.to_owned()), ("Cache-Control", "no-store".to_owned())];
        // RFC 9110, section 8.6.
        if self.status != 204 {
            fields.push(("Content-Length", length.to_string()));
        }
        if !self.error.is_empty() {
            fields.push(("Proxy-Status", self.proxy_status()));
        }
        fields.extend(self.more.iter().flat_map(|more| &more.fields).cloned());
        if form == Form::Page {
            fields.push(("Content-Security-Policy", POLICY.to_owned()));
            fields.push(("X-Content-Type-Options", "nosniff".to_owned()));
        }
        if form == Form::Grpc {
            let hint = self.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            let message = format!("overlane: {} ({}){hint}", self.message, self.reason);
            fields.push(("grpc-status", grpc::status_of(self.status, self.reason).to_string()));
            fields.push(("grpc-message", grpc::escape(&message)));
            if self.reason == OVERLOAD {
                // What `Retry-After` is to others (gRPC proposal A6, "Pushback").
                fields.push(("grpc-retry-pushback-ms", "1000".to_owned()));
            }
        } else if self.status == 503 {
            fields.push(("Retry-After", "1".to_owned()));
        }
        fields
    }

    /// The head for a body of `length` bytes, as Pingora wants it.
    ///
    /// # Errors
    /// Never in practice: status and values are valid by construction.
    pub fn head(
        &self,
        form: Form,
        content_type: &str,
        length: usize,
    ) -> pingora_error::Result<ResponseHeader> {
        let mut head = ResponseHeader::build(self.status_in(form), Some(6))?;
        for (name, value) in self.fields(form, content_type, length) {
            head.append_header(name, value)?;
        }
        Ok(head)
    }

    /// The whole answer as HTTP/1.1 bytes.
    #[must_use]
    pub fn bytes(&self, manner: &Manner<'_>) -> Vec<u8> {
        if let Some(whole) = self.whole() {
            return whole.to_vec();
        }
        let (body, content_type) = self.body(manner.form);
        let status = self.status_in(manner.form);
        let mut text = format!("HTTP/1.1 {status} {}\r\n", phrase(status));
        for (name, value) in self.fields(manner.form, content_type, body.len()) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(receipts) = manner.receipts {
            text.push_str(&format!("{ROUTE_HEADER}: {receipts}\r\n"));
        }
        text.push_str(&String::from_utf8_lossy(manner.lines));
        if manner.close {
            text.push_str("Connection: close\r\n");
        }
        text.push_str("\r\n");
        if !manner.to_head {
            text.push_str(&body);
        }
        text.into_bytes()
    }
}

fn phrase(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_reaches_no_header_unescaped() {
        let answer =
            Answer::plain(400, "http_request_error", "invalid-key", "header `x`: `a\r\nb\"é\\` is not");
        let bytes = String::from_utf8(answer.bytes(&Manner::default())).expect("text");
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
        let (body, content_type) = answer.body(Form::Json);
        let body: serde_json::Value = serde_json::from_str(&body).expect("json");
        assert_eq!((content_type, &body["reason"]), ("application/problem+json", &json!("pending")));
        assert_eq!(answer.body(Form::Text).0, "overlane: no address (pending)\n");
    }
}
