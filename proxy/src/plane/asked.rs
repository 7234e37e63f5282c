//! What the access log, and spans, say of a request's head.

use std::time::Instant;

use super::grpc;
use super::propagation::Propagation;
use crate::access::{Wanted, loggable_path, loggable_text, loggable_url};
use crate::h1::Name;
use crate::h1::request::Head;
use crate::traces::SpanIds;

const REFERER: Name<'_> = Name::of("referer");
const USER_AGENT: Name<'_> = Name::of("user-agent");

/// What the access log says of a request's head.
#[derive(Debug)]
pub struct Asked {
    /// Whether it is said whatever becomes of the request; else where that is an error.
    pub sampled: bool,
    /// The authority that was called.
    pub authority: String,
    /// The path, without query.
    pub path: String,
    /// The version of HTTP.
    pub version: &'static str,
    /// The request's id, as it goes upstream.
    pub request_id: Option<String>,
    /// The id of its trace, as it goes upstream.
    pub trace_id: Option<String>,
    /// Where the client says that it comes from, and what it says that it is, where that is wanted.
    pub referer: Option<String>,
    /// See `referer`.
    pub agent: Option<String>,
}

impl Asked {
    /// What is `wanted` of a head; `propagation` knows what becomes of the ids in it.
    #[must_use]
    pub fn of(head: &Head<'_>, propagation: &Propagation, wanted: Wanted) -> Self {
        let said = |name| head.values(name).next().filter(|_| wanted.combined);
        Self {
            sampled: wanted.sampled,
            authority: loggable_text(head.authority.as_bytes()),
            path: loggable_path(head.path),
            version: if head.old { "1.0" } else { "1.1" },
            request_id: propagation.request_id_of(head).map(loggable_text),
            trace_id: propagation.trace_id_of(head).map(|id| loggable_text(id.as_bytes())),
            referer: said(REFERER).map(loggable_url),
            agent: said(USER_AGENT).map(loggable_text),
        }
    }
}

/// A request that has spans.
#[derive(Debug)]
pub struct Traced {
    /// What they are called.
    pub ids: SpanIds,
    /// What they say of its head.
    pub asked: Asked,
    /// When an upstream was first looked for.
    pub called: Option<Instant>,
    /// Whether it is a call of gRPC.
    pub is_call: bool,
    /// What that came to, once its upstream has said so.
    pub grpc_status: Option<u8>,
}

impl Traced {
    /// One whose spans are called so.
    #[must_use]
    pub fn of(ids: SpanIds, head: &Head<'_>, propagation: &Propagation) -> Self {
        let wanted = Wanted { sampled: true, combined: false };
        let asked = Asked::of(head, propagation, wanted);
        Self { ids, asked, called: None, is_call: grpc::is_call(head), grpc_status: None }
    }
}
