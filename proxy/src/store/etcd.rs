//! Keys of an etcd as store: `/overlane/alice.yaml` holds what the file `alice.yaml` would.
//!
//! It is asked by its own API, gRPC (docs/decisions/0038-etcd-by-its-own-api.md), of version 3.4 and later. A write is one
//! transaction. That no environment was written meanwhile is told by the keys that are there: what was only removed by others
//! does not count, nor does what is attached to others, which is written all the time.

pub mod access;
pub mod address;
mod connection;
mod messages;
mod watch;

pub use access::Access;
use address::Endpoint;
pub use address::EtcdAddress;

use std::ffi::OsStr;
use std::str;

use async_trait::async_trait;
use bytes::Bytes;

use super::directory::read::is_blueprint;
use super::open::is_attachment;
use super::shared::{
    Commit, CommitError, Committed, Entry, Fault, Listing, Revision, Shared, WatchError, Watching,
};
use connection::{Connection, Failure};
use messages::{
    Compare, DeleteRange, EQUAL, KeyValue, LESS, MOD, Put, RangeRequest, RangeResponse, RequestOp,
    TxnRequest, TxnResponse,
};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
/// So many keys are asked for at once.
const PAGE: i64 = 1000;
/// So often is a write sent again before which only attachments of others were written.
const AGAIN: u32 = 16;
/// The most of those that are looked at.
const OTHERS: i64 = 256;
/// So often is a listing begun anew that etcd forgot in between.
const LISTINGS: u32 = 3;

/// A store in an etcd.
pub struct Etcd {
    address: String,
    keys: Keys,
    connection: std::sync::Arc<Connection>,
}

/// Which keys are entries.
#[derive(Clone)]
struct Keys {
    prefix: Bytes,
    /// The first key after all of them.
    end: Bytes,
}

impl Keys {
    fn new(prefix: &str) -> Self {
        let mut end = prefix.as_bytes().to_vec();
        // A prefix ends with a slash, which is not the last byte that there is.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self { prefix: prefix.to_owned().into(), end: end.into() }
    }

    fn key(&self, name: &str) -> Bytes {
        [&self.prefix, name.as_bytes()].concat().into()
    }

    /// The name of an entry; none where the key is something else's.
    fn name(&self, key: &[u8]) -> Option<String> {
        let name = str::from_utf8(key.strip_prefix(&*self.prefix)?).ok()?;
        (!name.contains('/') && is_blueprint(OsStr::new(name))).then(|| name.to_owned())
    }

    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        let name = self.name(&kv.key)?;
        // What is no text is shown to be none where it is parsed.
        let text = String::from_utf8_lossy(&kv.value).into_owned();
        Some(Entry { name, text, modified: None, revision: Revision::new(kv.mod_revision) })
    }
}

/// A state as etcd counts it; one of another store is no state here.
fn number(revision: &Revision) -> Option<i64> {
    revision.as_str().parse().ok()
}

impl Etcd {
    /// An etcd; it is not asked yet.
    ///
    /// # Errors
    /// A password would be sent in the clear.
    pub fn new(address: &EtcdAddress, access: Access) -> Result<Self, Fault> {
        let speaks_tls = |endpoint: &Endpoint| endpoint.tls.unwrap_or_else(|| access.speaks_tls());
        let in_the_clear = |endpoint: &&Endpoint| !speaks_tls(endpoint) && !endpoint.is_local();
        if access.user.is_some()
            && !access.in_the_clear
            && let Some(endpoint) = address.endpoints.iter().find(in_the_clear)
        {
            return Err(Fault(format!(
                "the password of etcd's user would go to {endpoint} in the clear: write https://{}, with ETCDCTL_CACERT where \
                 its authority is none of the system's; or OVERLANE_ETCD_IN_THE_CLEAR=true where something else encrypts",
                endpoint.authority()
            )));
        }
        let keys = Keys::new(&address.prefix());
        let connection = Connection::new(address.endpoints.clone(), access);
        Ok(Self { address: address.to_string(), keys, connection: connection.into() })
    }

    /// All keys, in pages of one state; none where that was forgotten meanwhile.
    async fn list_once(&self) -> Result<Listing, Failure> {
        let (mut entries, mut revision) = (Vec::new(), 0);
        let mut key = self.keys.prefix.clone();
        loop {
            let range_end = self.keys.end.clone();
            let request = RangeRequest { key, range_end, limit: PAGE, revision, ..RangeRequest::default() };
            let page: RangeResponse = self.connection.ask(RANGE, &request, true).await?;
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            entries.extend(page.kvs.iter().filter_map(|kv| self.keys.entry(kv)));
            match page.kvs.last() {
                Some(last) if page.more => key = [&*last.key, b"\0"].concat().into(),
                _ => return Ok(Listing { entries, revision: Revision::new(revision) }),
            }
        }
    }

    fn compare(&self, name: &str, known: Option<&Revision>) -> Result<Compare, CommitError> {
        let mod_revision = known.map_or(Some(0), number).ok_or(CommitError::Conflict)?;
        Ok(Compare {
            result: EQUAL,
            target: MOD,
            key: self.keys.key(name),
            mod_revision: Some(mod_revision),
            range_end: Bytes::new(),
        })
    }

    /// A write, if no environment was written after `since`; what was written since then is told where it is refused.
    fn transaction(&self, commit: &Commit, since: Option<i64>) -> Result<TxnRequest, CommitError> {
        let written = commit.writes.iter().map(|write| self.compare(&write.name, write.known.as_ref()));
        let unchanged = commit.unchanged.iter().map(|(name, known)| self.compare(name, Some(known)));
        let mut compare = written.chain(unchanged).collect::<Result<Vec<_>, _>>()?;
        let mut failure = Vec::new();
        if let Some(since) = since {
            let (key, range_end) = (self.keys.prefix.clone(), self.keys.end.clone());
            let mod_revision = Some(since + 1);
            compare.push(Compare {
                result: LESS,
                target: MOD,
                key: key.clone(),
                mod_revision,
                range_end: range_end.clone(),
            });
            failure.push(RequestOp {
                range: Some(RangeRequest {
                    key,
                    range_end,
                    limit: OTHERS,
                    keys_only: true,
                    min_mod_revision: since + 1,
                    ..RangeRequest::default()
                }),
                ..RequestOp::default()
            });
        }
        let success = commit.writes.iter().map(|write| {
            let key = self.keys.key(&write.name);
            match write.text.clone() {
                Some(text) => {
                    RequestOp { put: Some(Put { key, value: text.into() }), ..RequestOp::default() }
                }
                None => RequestOp { delete: Some(DeleteRange { key }), ..RequestOp::default() },
            }
        });
        Ok(TxnRequest { compare, success: success.collect(), failure })
    }

    /// The state until which nothing was written but what is attached to other environments than a commit is about; none where
    /// something else was.
    fn still_alone(&self, commit: &Commit, refused: &TxnResponse) -> Option<i64> {
        let others = refused.responses.first()?.range.as_ref()?;
        let of_others = |kv: &KeyValue| {
            let name = self.keys.name(&kv.key);
            name.is_none_or(|name| {
                is_attachment(&name) && commit.writes.iter().all(|write| write.name != name)
            })
        };
        // Where there is none, another condition does not hold.
        let only_these = !others.kvs.is_empty() && !others.more && others.kvs.iter().all(of_others);
        refused.header.as_ref().filter(|_| only_these).map(|header| header.revision)
    }
}

#[async_trait]
impl Shared for Etcd {
    fn address(&self) -> String {
        self.address.clone()
    }

    async fn list(&self) -> Result<Listing, Fault> {
        let mut left = LISTINGS;
        loop {
            left -= 1;
            match self.list_once().await {
                Err(failure) if failure.is_compacted() && left > 0 => {}
                listing => return listing.map_err(|failure| failure.fault()),
            }
        }
    }

    async fn watch(&self, after: &Revision) -> Result<Watching, WatchError> {
        let after = number(after).ok_or(WatchError::Compacted)?;
        watch::watch(&self.connection, &self.keys, after).await
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed, CommitError> {
        let alone = commit.alone_since.as_ref();
        let mut since = alone.map(|since| number(since).ok_or(CommitError::Conflict)).transpose()?;
        for _ in 0..AGAIN {
            let request = self.transaction(commit, since)?;
            let answer: TxnResponse = self.connection.ask(TXN, &request, false).await.map_err(|failure| {
                match failure.is_ambiguous() {
                    true => CommitError::Unsure(failure.fault()),
                    false => CommitError::Fault(failure.fault()),
                }
            })?;
            if answer.succeeded {
                let revision = Revision::new(answer.header.map_or(0, |header| header.revision));
                let entries = commit.writes.iter().map(|write| write.text.as_ref().map(|_| revision.clone()));
                return Ok(Committed { entries: entries.collect(), revision });
            }
            since = Some(self.still_alone(commit, &answer).ok_or(CommitError::Conflict)?);
        }
        Err(CommitError::Conflict)
    }
}
