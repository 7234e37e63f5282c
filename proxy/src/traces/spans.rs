//! A request as its spans tell it, by OpenTelemetry's conventions for HTTP and gRPC: one of the proxy as its server, and one of the
//! proxy as a client, where it went anywhere. What they say is what the access log says, under the same bounds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use overlane_config::url::{Scheme, split_authority};

use super::Exchanged;
use super::messages::{KeyValue, Span, Status};
use crate::access::Line;
use crate::upstream::{Address, Endpoint};

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;
/// That it is known whether a span's parent is another process's, and that it is.
const PARENT_IS_KNOWN: u32 = 0x100;
const PARENT_IS_REMOTE: u32 = 0x200;
/// What the statuses of gRPC are called; a number that is none of them stands for `UNKNOWN`.
const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Those that are a server's errors; a client's are all but `OK`.
const SERVER_ERRORS: [&str; 6] =
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

impl Exchanged {
    /// Its spans.
    pub(super) fn told(&self) -> impl Iterator<Item = Span> {
        let client = self.upstream.as_ref().map(|endpoint| self.client(endpoint));
        std::iter::once(self.server()).chain(client)
    }

    fn server(&self) -> Span {
        let Line { authority, path, client, version, status, .. } = &self.line;
        let mut attributes = self.of_both();
        let scheme = if self.secure { "https" } else { "http" };
        attributes.extend([
            KeyValue::text("url.scheme", scheme),
            KeyValue::text("url.path", path),
            KeyValue::text("client.address", client),
            KeyValue::text("overlane.role", self.line.role),
            KeyValue::number("overlane.generation", i64::try_from(self.line.generation).unwrap_or(i64::MAX)),
        ]);
        if let Ok((host, port)) = split_authority(authority) {
            attributes.push(KeyValue::text("server.address", host));
            let usual = if self.secure { 443 } else { 80 };
            attributes.push(KeyValue::number("server.port", i64::from(port.unwrap_or(usual))));
        }
        if !version.is_empty() {
            attributes.push(KeyValue::text("network.protocol.version", *version));
        }
        attributes.extend(status_code(self.status()));
        let call = self.came_to().filter(|status| SERVER_ERRORS.contains(status));
        let failed = self.failed.filter(|_| matches!(status, 0 | 500..) || self.answered || call.is_some());
        let error = failed.or(call).map(str::to_owned);
        let error = error.or_else(|| (*status >= 500).then(|| status.to_string()));
        let mut span = self.span(self.ids.server, self.ids.parent, self.took, attributes, error);
        span.kind = SERVER;
        span.flags |= self.ids.parent.map_or(0, |_| PARENT_IS_REMOTE);
        span
    }

    fn client(&self, endpoint: &Endpoint) -> Span {
        let mut attributes = self.of_both();
        let url = &endpoint.url;
        match &endpoint.address {
            Address::Tcp(address) => {
                let scheme = if url.scheme == Scheme::Https { "https" } else { "http" };
                let (host, path) = (url.authority(), &self.line.path);
                attributes.extend([
                    KeyValue::text("url.full", format!("{scheme}://{host}{path}")),
                    KeyValue::text("server.address", &*url.host),
                    KeyValue::number("server.port", i64::from(url.port)),
                    KeyValue::text("network.peer.address", address.ip().to_string()),
                    KeyValue::number("network.peer.port", i64::from(address.port())),
                ]);
            }
            Address::Unix(path) => attributes.extend([
                KeyValue::text("server.address", &**path),
                KeyValue::text("network.transport", "unix"),
            ]),
        }
        let status = self.line.status;
        let call = self.came_to().filter(|status| *status != "OK");
        let mut error = self.failed.or(call).map(str::to_owned);
        if self.answered {
            attributes.extend(status_code(status));
            error = error.or_else(|| (status >= 400).then(|| status.to_string()));
        }
        let took = self.called.unwrap_or(self.took);
        Span { kind: CLIENT, ..self.span(self.ids.client, Some(self.ids.server), took, attributes, error) }
    }

    /// What both spans say.
    fn of_both(&self) -> Vec<KeyValue> {
        let line = &self.line;
        let ours = [
            ("overlane.overlay", line.overlay.as_deref()),
            ("overlane.environment", line.environment.as_deref()),
            ("overlane.service", line.service.as_deref()),
            ("overlane.via", line.via),
            ("overlane.reason", line.reason),
            ("overlane.request_id", line.request_id.as_deref()),
        ];
        let known = ours.into_iter().filter_map(|(key, value)| Some(KeyValue::text(key, value?)));
        let call = self.is_call.then(|| KeyValue::text("rpc.system.name", "grpc"));
        let came_to = self.came_to().map(|status| KeyValue::text("rpc.response.status_code", status));
        let method = KeyValue::text("http.request.method", line.method);
        [method].into_iter().chain(known).chain(call).chain(came_to).collect()
    }

    /// The status of HTTP that its client got: a call of gRPC is answered with 200, whatever is said.
    fn status(&self) -> u16 {
        let status = self.line.status;
        if self.is_call && !self.answered && status != 0 { 200 } else { status }
    }

    /// What a call of gRPC came to.
    fn came_to(&self) -> Option<&'static str> {
        let status = usize::from(self.grpc_status?);
        Some(STATUSES.get(status).copied().unwrap_or("UNKNOWN"))
    }

    /// A span that ended with the request, and what all of them have.
    fn span(
        &self,
        id: u64,
        parent: Option<u64>,
        took: Duration,
        mut attributes: Vec<KeyValue>,
        error: Option<String>,
    ) -> Span {
        let nanos = |at: SystemTime| {
            u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
        };
        let status = error.as_ref().map(|_| Status { code: ERROR });
        attributes.extend(error.map(|error| KeyValue::text("error.type", error)));
        // The word of the convention where the method is none of the known ones.
        let name = if self.line.method == "_OTHER" { "HTTP" } else { self.line.method };
        Span {
            trace_id: self.ids.trace.to_be_bytes().into(),
            span_id: id.to_be_bytes().into(),
            parent_span_id: parent.map_or_else(Vec::new, |parent| parent.to_be_bytes().into()),
            flags: u32::from(self.ids.flags) | PARENT_IS_KNOWN,
            name: name.to_owned(),
            start_time_unix_nano: nanos(self.ended.checked_sub(took).unwrap_or(UNIX_EPOCH)),
            end_time_unix_nano: nanos(self.ended),
            attributes,
            status,
            ..Span::default()
        }
    }
}

fn status_code(status: u16) -> Option<KeyValue> {
    (status != 0).then(|| KeyValue::number("http.response.status_code", i64::from(status)))
}
