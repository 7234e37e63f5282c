//! Receipts: what came from upstream, what calls left, our own; and what they are held against.

use std::sync::atomic::Ordering;

use overlane_config::route;
use overlane_config::route::receipt::{self, Hop, Marks, Own};

use super::Exchange;
use crate::clock;
use crate::correlation::Calls;
use crate::metrics::{Event, count};
use crate::plane::answer::{Answer, More};

impl Exchange {
    /// Appends the receipts to a response's head, if the request carried a key: those that came from
    /// upstream, those that the application's calls left, and our own. As in Proxy-Status, what is nearer
    /// to the origin comes first. `streams` where the length of the response is not known yet.
    ///
    /// # Errors
    /// The answer to give instead, where this is the first proxy and what the request requires is not met.
    pub fn add_receipts<'v>(
        &self,
        before: impl Iterator<Item = &'v [u8]>,
        streams: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Box<Answer>> {
        let Some((own, calls)) = self.own(streams) else {
            self.propagation.call_ends();
            return self.verify(&[]);
        };
        let left = calls.left.iter().map(|left| left.list());
        out.extend_from_slice(route::ROUTE_HEADER.as_bytes());
        out.extend_from_slice(b": ");
        let from = out.len();
        let assembled = receipt::assemble(before.map(|list| list as &[u8]).chain(left), Some(&own), out);
        if assembled.ignored > 0 {
            count(Event::ReceiptsIgnored);
        }
        if assembled.own {
            self.hop.store(own.hop.bits(), Ordering::Relaxed);
        }
        self.propagation.leave(&out[from..]);
        self.propagation.call_ends();
        self.verify(&out[from..])?;
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// The receipts of an answer of our own; the request that caused this one is told of them as well.
    #[must_use]
    pub fn own_receipts(&self) -> Option<Box<str>> {
        let list = self.tunnel_receipts()?;
        self.leave(&list);
        Some(list)
    }

    /// Those of a tunnel, of which the request that caused it is told ([`Self::leave`]) once they are about something:
    /// where HTTP is in it, each request has its own.
    #[must_use]
    pub fn tunnel_receipts(&self) -> Option<Box<str>> {
        self.propagation.call_ends();
        let (own, calls) = self.own(false)?;
        let mut list = Vec::new();
        receipt::assemble(calls.left.iter().map(|left| left.list()), Some(&own), &mut list);
        self.hop.store(own.hop.bits(), Ordering::Relaxed);
        String::from_utf8(list).ok().map(Into::into)
    }

    /// Tells the request that caused this one of its receipts.
    pub fn leave(&self, receipts: &str) {
        self.propagation.leave(receipts.as_bytes());
    }

    /// Our own part in the receipts, and what calls left, if the request carried a key.
    fn own(&self, streams: bool) -> Option<(Own<'_>, Calls)> {
        let target = self.target.as_ref().ok()?;
        let receipt = target.receipt.as_ref().filter(|_| self.key.keys.is_some())?;
        let (calls, partial) = match target.application {
            true => {
                let calls = self.propagation.take_calls(&self.gate);
                let missing = calls.missing;
                (calls, missing || streams)
            }
            false => (Calls::default(), false),
        };
        let marks = Marks::PARTIAL.when(partial);
        let marks = marks.and(Marks::CONTRADICTED.when(self.key.contradicted));
        let marks = marks.and(Marks::RESTORED.when(self.propagation.restored()));
        let hop = Hop::new(fastrand::u64(..));
        Some((Own { receipt, hop, marks, nearest: target.application }, calls))
    }

    /// Holds what the request requires against the receipts of the whole path.
    fn verify(&self, list: &[u8]) -> Result<(), Box<Answer>> {
        let Some(require) = self.require.as_deref().filter(|_| !self.passes_through()) else {
            return Ok(());
        };
        let (table, baseline) = (&self.snapshot.table, self.gate.listener.baseline.as_ref());
        let receipts = (!list.is_empty()).then_some(list);
        match route::verify(table, baseline, self.key.keys.as_ref(), require, receipts, clock::now()) {
            Ok(()) => Ok(()),
            Err(refusal) => {
                let receipts = receipts.map(|list| String::from_utf8_lossy(list).into());
                Err(Box::new(Answer::from(&refusal).with(More { receipts, ..More::default() })))
            }
        }
    }
}
