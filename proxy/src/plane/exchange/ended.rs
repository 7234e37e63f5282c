//! The end of a request: it is counted, written down and logged.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use overlane_config::carrier::Keys;
use overlane_config::name::EnvironmentId;
use overlane_config::time::UnixMillis;

use super::Exchange;
use crate::access::Line;
use crate::clock;
use crate::decisions::{Decided, Note, write};
use crate::metrics::{Counted, observe};
use crate::plane::asked::{Asked, Traced};
use crate::plane::grpc;
use crate::tokens::Refused as RefusedToken;
use crate::traces::Exchanged;

impl Exchange {
    /// Counts and logs the request, which ends `now`; `status` is 0 where no answer was sent. Only the
    /// first call counts.
    pub fn ended(&mut self, status: u16, now: Instant) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let target = self.target.as_ref().ok();
        let receipt = self.receipt();
        let counted = Counted {
            overlay: target.and_then(|target| target.overlay.as_ref()),
            service: receipt.map(|receipt| &receipt.service),
            environment: receipt.map(|receipt| &receipt.environment),
            // What the proxy answers itself is nobody's.
            via: receipt.filter(|_| self.is_upstreams()).map(|receipt| receipt.via),
            class: u8::try_from(status / 100).unwrap_or_default(),
            method: self.method,
            gate: &self.gate,
            delivered: target.is_some_and(|target| target.application),
        };
        let took = now.saturating_duration_since(self.started);
        // Who was held waited for an upstream that was not there.
        let added = self.times.added(self.started, now).filter(|_| !self.held_at_all);
        observe(&counted, took, added);
        if let Some(note) = self.noted.take() {
            self.write_down(note, status, took);
        }
        if let Some(traced) = self.traced.take() {
            self.hand_in(*traced, status, took);
        }
        if let Some(asked) = &self.logged {
            let own = self.failed.is_some() || self.refusal().is_some();
            if asked.sampled || matches!(status, 0 | 500..) || (own && status >= 400) {
                self.plane.access.log(&self.log_line(asked, status, took));
            }
        }
    }

    /// Writes its decision down, for whoever wants to look at it.
    fn write_down(&self, note: Box<Note>, status: u16, took: Duration) {
        let (target, receipt) = (self.target.as_ref().ok(), self.receipt());
        let overlay = || target.and_then(|target| target.overlay.as_ref()).map(EnvironmentId::as_str);
        let hop = self.hop.load(Ordering::Relaxed);
        let decided = Decided {
            started: self.started,
            took,
            upstream_took: self.times.upstream(),
            gate: self.gate.number,
            method: self.method,
            status,
            via: receipt.map(|receipt| receipt.via),
            reason: receipt.map(|receipt| receipt.reason),
            failed: self.failed.or_else(|| self.refusal().map(|answer| answer.reason)),
            key_from: self.key_from,
            generation: self.snapshot.generation,
            hop,
            key: self.key.keys.as_ref().map(Keys::as_str).or_else(overlay),
            service: receipt.map(|receipt| receipt.service.as_str()),
            environment: receipt.map(|receipt| receipt.environment.as_str()),
            upstream: self.endpoint.as_ref().map(|endpoint| &endpoint.address),
        };
        write(note, &decided);
    }

    /// Hands in what its spans are made of.
    fn hand_in(&self, traced: Traced, status: u16, took: Duration) {
        let Some(traces) = &self.plane.traces else { return };
        let Traced { ids, asked, called, is_call, grpc_status } = traced;
        let failed = self.failed.or_else(|| self.refusal().map(|answer| answer.reason));
        let answered = self.is_upstreams() && self.refusal().is_none() && status != 0;
        // What its upstream said of it is not what the client read, where the answer was ours or broke off.
        let said = grpc_status.filter(|_| answered && !self.cut);
        let own = || failed.filter(|_| !answered && status != 0).map(|why| grpc::status_of(status, why));
        let exchanged = Exchanged {
            ids,
            line: self.log_line(&asked, status, took).kept(),
            ended: SystemTime::now(),
            took,
            called: called.map(|at| took.saturating_sub(at.saturating_duration_since(self.started))),
            upstream: self.endpoint.clone(),
            secure: self.standing.secure,
            failed,
            answered,
            is_call,
            grpc_status: said.or_else(|| own().filter(|_| is_call)),
        };
        traces.hand_in(Box::new(exchanged));
    }

    /// Whether what was answered is the upstream's, in whole or in part.
    pub(super) fn is_upstreams(&self) -> bool {
        self.failed.is_none() || self.cut
    }

    fn log_line<'l>(&'l self, asked: &'l Asked, status: u16, took: Duration) -> Line<&'l str> {
        let receipt = self.receipt();
        Line {
            timestamp: UnixMillis(clock::now().0.saturating_sub(millis(took))),
            role: self.gate.role(),
            method: self.method.as_str(),
            authority: &asked.authority,
            path: &asked.path,
            version: asked.version,
            status,
            bytes: self.sent_bytes,
            client: &self.standing.text,
            client_identity: self.standing.identity.as_deref(),
            token: self.standing.bearer.as_ref().and_then(|bearer| bearer.refused).map(RefusedToken::as_str),
            took,
            upstream: self.endpoint.as_ref().map(|endpoint| endpoint.text()),
            service: receipt.map(|receipt| receipt.service.as_str()),
            overlay: self.key.keys.as_ref().map(Keys::as_str),
            environment: receipt.map(|receipt| receipt.environment.as_str()),
            via: receipt.map(|receipt| receipt.via.as_str()),
            reason: self
                .failed
                .or_else(|| receipt.map(|receipt| receipt.reason.as_str()))
                .or_else(|| self.refusal().map(|answer| answer.reason)),
            request_id: asked.request_id.as_deref(),
            trace_id: asked.trace_id.as_deref(),
            generation: self.snapshot.generation,
            referer: asked.referer.as_deref(),
            agent: asked.agent.as_deref(),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
