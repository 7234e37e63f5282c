//! Custom resources of a Kubernetes cluster as store: `Baseline` and `Overlay` objects of one namespace, which `kubectl`
//! reads and writes as well (docs/decisions/0039-kubernetes.md).
//!
//! An object is an environment and what is attached to it; a write of one object is a compare-and-swap by its resource
//! version. Kubernetes has no transactions, so what depends on more than one object goes through a journal, which is one
//! object too (`kubernetes/commit.rs`). That holds among all who write through Overlane; `kubectl` asks no journal.

pub mod address;
mod commit;
mod connection;
mod object;
mod schema;
mod status;
mod watch;

pub use address::KubernetesAddress;
pub use object::Kind;
pub use schema::definition;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use foldhash::fast::RandomState;

use super::shared::{
    Commit, CommitError, Committed, Fault, Listing, Revision, Shared, Verdict, WatchError, Watching,
};
use connection::{Call, Connection, Failure, PAGE_ANSWER, Resource};
use object::{Named, Object};

/// So many objects are asked for at once.
const PAGE: usize = 500;
/// So often is a listing begun anew that the API server forgot in between.
const LISTINGS: u32 = 3;

/// A store in Kubernetes.
pub struct Kubernetes {
    cluster: Arc<Cluster>,
}

/// A namespace of a cluster.
struct Cluster {
    /// As it is written in `--store`.
    address: String,
    connection: Connection,
}

/// The states of both kinds, each of which has its own: a [`Revision`] is both, with a comma between them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct States([String; 2]);

impl States {
    /// The first ones: whatever is known is later.
    fn unknown() -> Self {
        Self(["0".to_owned(), "0".to_owned()])
    }

    /// The states that a revision is; one of another store is none.
    fn read(revision: &Revision) -> Option<Self> {
        let (first, second) = revision.as_str().split_once(',')?;
        Some(Self([first.to_owned(), second.to_owned()]))
    }

    fn of(&self, kind: Kind) -> &str {
        &self.0[kind as usize]
    }

    fn set(&mut self, kind: Kind, state: &str) {
        state.clone_into(&mut self.0[kind as usize]);
    }

    fn revision(&self) -> Revision {
        Revision::new(format!("{},{}", self.0[0], self.0[1]))
    }
}

impl Kubernetes {
    /// A namespace of a cluster; it is not asked yet.
    ///
    /// # Errors
    /// No cluster is known, or nothing that lets us in.
    pub fn new(address: &KubernetesAddress) -> Result<Self, Fault> {
        let connection = Connection::new(address)?;
        let known = KubernetesAddress { namespace: Some(connection.namespace.clone()), ..address.clone() };
        Ok(Self { cluster: Arc::new(Cluster { address: known.to_string(), connection }) })
    }
}

impl Cluster {
    fn fault(&self, failure: &Failure) -> Fault {
        failure.fault(&self.address)
    }

    fn watch_error(&self, failure: &Failure) -> WatchError {
        if failure.is_forgotten() { WatchError::Compacted } else { WatchError::Fault(self.fault(failure)) }
    }

    /// All objects of a kind, and the state of which they are.
    async fn all(&self, kind: Kind) -> Result<(Vec<Object>, String), Failure> {
        let mut left = LISTINGS;
        loop {
            left -= 1;
            match self.pages(kind, false).await {
                Err(failure) if failure.is_forgotten() && left > 0 => {}
                listed => return listed,
            }
        }
    }

    /// All pages of a listing, or only what is said about the objects.
    async fn pages(&self, kind: Kind, metadata_only: bool) -> Result<(Vec<Object>, String), Failure> {
        let (mut objects, mut next) = (Vec::new(), String::new());
        loop {
            let token: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
            let after = if token.is_empty() { String::new() } else { format!("&continue={token}") };
            let query = format!("limit={PAGE}{after}");
            let call = Call { query: &query, metadata_only, ..Call::new("list", Resource::Kind(kind)) };
            let mut page = self.connection.ask(call, PAGE_ANSWER).await?;
            let items = page["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
            objects.extend(items.into_iter().map(|value| Object { kind, value }));
            let metadata = &page["metadata"];
            let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
            match text("continue") {
                end if end.is_empty() => return Ok((objects, text("resourceVersion"))),
                more => next = more,
            }
        }
    }

    async fn list(&self) -> Result<Listing, Failure> {
        let (baselines, overlays) = tokio::try_join!(self.all(Kind::Baseline), self.all(Kind::Overlay))?;
        let states = States([baselines.1, overlays.1]);
        let mut named: HashMap<String, Named, RandomState> = HashMap::default();
        for object in baselines.0.into_iter().chain(overlays.0) {
            named.entry(object.name().to_owned()).or_default().set(object.kind, Some(object));
        }
        let entries = named.iter().flat_map(|(name, objects)| objects.entries(name)).collect();
        Ok(Listing { entries, revision: states.revision() })
    }
}

#[async_trait]
impl Shared for Kubernetes {
    fn address(&self) -> String {
        self.cluster.address.clone()
    }

    async fn list(&self) -> Result<Listing, Fault> {
        // What somebody could not finish is finished first, where we may.
        self.cluster.finish().await;
        self.cluster.list().await.map_err(|failure| self.cluster.fault(&failure))
    }

    async fn watch(&self, after: &Revision) -> Result<Watching, WatchError> {
        let after = States::read(after).ok_or(WatchError::Compacted)?;
        watch::watch(&self.cluster, after).await
    }

    fn takes_verdicts(&self) -> bool {
        true
    }

    async fn say(&self, verdicts: &[Verdict]) -> Result<(), Fault> {
        self.cluster.say(verdicts).await.map_err(|failure| self.cluster.fault(&failure))
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed, CommitError> {
        self.cluster.commit(commit).await
    }
}
