/// The store is away, for all or for some.
mod away;
/// What only an etcd can do.
mod etcd;
/// What only a Kubernetes cluster can do.
mod kubernetes;
/// Several writers at once.
mod model;

use std::time::Duration;

use futures_util::StreamExt;
use overlane::store::shared::{Changes, Commit, Revision, WatchError, Watching, Write};
use tokio::time::timeout;

fn write(name: &str, known: Option<&Revision>, text: Option<&str>) -> Write {
    Write { name: name.to_owned(), known: known.cloned(), text: text.map(str::to_owned) }
}

fn commit(writes: Vec<Write>) -> Commit {
    Commit { writes, ..Commit::default() }
}

/// The next that is told and is a change of what is known; it comes long before `limit`.
async fn told(watching: &mut Watching, limit: Duration) -> Result<Changes, WatchError> {
    let next = async {
        loop {
            match watching.next().await.expect("an end is an error") {
                Ok(changes) if changes.changes.is_empty() => {}
                told => return told,
            }
        }
    };
    timeout(limit, next).await.expect("in time")
}
