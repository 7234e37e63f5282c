//! What changes in a namespace, as it comes: both kinds are followed at once. A watch ends by itself soon and goes on from
//! the state that it told last, so that one that nothing comes on any more is told from one that is quiet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, Select};
use kube::core::WatchEvent;
use serde_json::Value;
use tokio::time::timeout;

use super::connection::{ANSWER, Failure};
use super::object::{Kind, Named, Object};
use super::{Cluster, States};
use crate::store::shared::{Change, Changes, WatchError, Watching};

/// The API server ends a watch after so many seconds, with a bookmark shortly before: together with [`ANSWER`] below
/// [`SILENCE`](crate::store::shared::follow::SILENCE).
const LASTS: u64 = 20;

type Baselines = HashMap<String, Object, RandomState>;
type Told = Result<Event, Failure>;

/// What is told of one kind.
enum Event {
    /// An object, or one that is gone.
    Object(Box<Object>, bool),
    /// All changes up to a state were told.
    At(Kind, String),
}

/// Follows both kinds from these states.
pub(super) async fn watch(cluster: &Arc<Cluster>, after: States) -> Result<Watching, WatchError> {
    let known = cluster.all(Kind::Baseline).await;
    let (objects, _) = known.map_err(|failure| cluster.watch_error(&failure))?;
    let baselines = objects.into_iter().map(|object| (object.name().to_owned(), object)).collect();
    let [first, second] = Kind::ALL.map(|kind| follow(cluster.clone(), kind, after.of(kind).to_owned()));
    let events = stream::select(first, second);
    let reader = Reader { cluster: cluster.clone(), events, baselines, states: after };
    Ok(stream::unfold(Some(reader), Reader::told).boxed())
}

/// One kind, for as long as that goes well.
fn follow(cluster: Arc<Cluster>, kind: Kind, after: String) -> BoxStream<'static, Told> {
    let watch = One { cluster, kind, after, events: None };
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        let told = watch.next().await;
        let watch = told.is_ok().then_some(watch);
        Some((told, watch))
    })
    .boxed()
}

/// A watch of one kind.
struct One {
    cluster: Arc<Cluster>,
    kind: Kind,
    after: String,
    events: Option<BoxStream<'static, Result<WatchEvent<Value>, Failure>>>,
}

impl One {
    async fn next(&mut self) -> Told {
        let events = match &mut self.events {
            Some(events) => events,
            None => {
                let events = self.cluster.connection.follow(self.kind, &self.after, LASTS).await?;
                self.events.insert(events)
            }
        };
        let patience = Duration::from_secs(LASTS) + ANSWER;
        match timeout(patience, events.next()).await {
            Ok(Some(event)) => self.event(event?),
            // It ended, as it was asked to.
            Ok(None) => {
                self.events = None;
                Ok(Event::At(self.kind, self.after.clone()))
            }
            Err(_) => Err(Failure::Broken(format!("the API server is silent for {} s", patience.as_secs()))),
        }
    }

    fn event(&mut self, event: WatchEvent<Value>) -> Told {
        let (value, gone) = match event {
            WatchEvent::Added(value) | WatchEvent::Modified(value) => (value, false),
            WatchEvent::Deleted(value) => (value, true),
            WatchEvent::Bookmark(mark) => {
                self.after = mark.metadata.resource_version;
                return Ok(Event::At(self.kind, self.after.clone()));
            }
            WatchEvent::Error(status) => return Err(Failure::of_watch(status, self.kind)),
        };
        let object = Object { kind: self.kind, value };
        self.after = object.resource_version().to_owned();
        Ok(Event::Object(Box::new(object), gone))
    }
}

/// Who follows.
struct Reader {
    cluster: Arc<Cluster>,
    events: Select<BoxStream<'static, Told>, BoxStream<'static, Told>>,
    /// All there are: an overlay of the same name is a mistake that is to be seen.
    baselines: Baselines,
    states: States,
}

impl Reader {
    /// What is told next; nothing after an error.
    async fn told(reader: Option<Self>) -> Option<(Result<Changes, WatchError>, Option<Self>)> {
        let mut reader = reader?;
        match reader.next().await {
            Ok(changes) => Some((Ok(changes), Some(reader))),
            Err(failure) => Some((Err(reader.cluster.watch_error(&failure)), None)),
        }
    }

    async fn next(&mut self) -> Result<Changes, Failure> {
        // Neither of the two ends without an error.
        let ended = || Err(Failure::Broken("the API server ended the watch".to_owned()));
        let changes = match self.events.next().await.unwrap_or_else(ended)? {
            Event::At(kind, state) => {
                self.states.set(kind, &state);
                Vec::new()
            }
            Event::Object(object, gone) => {
                self.states.set(object.kind, object.resource_version());
                self.changes(*object, gone).await?
            }
        };
        Ok(Changes { changes, revision: self.states.revision() })
    }

    async fn changes(&mut self, object: Object, gone: bool) -> Result<Vec<Change>, Failure> {
        let (kind, name) = (object.kind, object.name().to_owned());
        let mut named = Named::default();
        named.set(kind, (!gone).then_some(object));
        match kind {
            Kind::Overlay => named.set(Kind::Baseline, self.baselines.get(&name).cloned()),
            Kind::Baseline => {
                match &named.baseline {
                    Some(baseline) => self.baselines.insert(name.clone(), baseline.clone()),
                    None => self.baselines.remove(&name),
                };
                named.set(Kind::Overlay, self.cluster.connection.get(Kind::Overlay, &name).await?);
            }
        }
        Ok(named.changes(&name).into())
    }
}
