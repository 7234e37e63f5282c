//! The published snapshot: one pointer store changes everything at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use overlane_config::table::RoutingTable;
use tokio::sync::watch;

use crate::upstream::Upstream;

/// How often retired snapshots are looked at, while there are any.
const COLLECT: Duration = Duration::from_millis(500);

/// The table that requests of this process are looked up in.
pub type Table = RoutingTable<Arc<Upstream>>;

/// An immutable table and its generation.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each publication; 0 before the first.
    pub generation: u64,
    /// The table.
    pub table: Table,
}

/// Where the control side publishes and the workers load.
#[derive(Debug)]
pub struct Published {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<u64>,
    /// Snapshots that a request may still hold; they are dropped here, on the control side.
    retired: Mutex<Vec<Arc<Snapshot>>>,
}

impl Default for Published {
    fn default() -> Self {
        Self { current: ArcSwap::default(), generation: watch::Sender::new(0), retired: Mutex::default() }
    }
}

impl Published {
    /// The newest snapshot, for as long as one decision takes.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The newest snapshot, to keep.
    #[must_use]
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A receiver of the newest generation: a level, not an edge.
    #[must_use]
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Publishes a table and returns its generation. Called by the control side only.
    pub fn publish(&self, table: Table) -> u64 {
        let generation = self.current.load().generation + 1;
        let before = self.current.swap(Arc::new(Snapshot { generation, table }));
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(before);
        self.retain_held();
        self.generation.send_replace(generation);
        generation
    }

    /// Drops retired snapshots soon after the last request that holds them: until then what they lead to
    /// lives, and so do the unused connections to it. Runs on the control side; never ends.
    pub async fn collect(&self) {
        let mut generations = self.generations();
        // Fails only when nobody can publish any more.
        while generations.changed().await.is_ok() {
            while !self.retain_held() {
                tokio::time::sleep(COLLECT).await;
            }
        }
    }

    /// Drops the retired snapshots that no request holds; says whether these were all.
    fn retain_held(&self) -> bool {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        retired.is_empty()
    }
}
