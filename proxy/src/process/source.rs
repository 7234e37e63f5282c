//! The store of a process, of whatever kind: followed, served to others, and taken in at the start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use overlane_config::lineage::FileChange;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Task;
use crate::admin::ReloadRequest;
use crate::control::{Control, Trigger};
use crate::settings::Settings;
use crate::store::behind::{Behind, Keeper};
use crate::store::cache::{Cache, KeptText};
use crate::store::directory::follow::{self as directory, Follower};
use crate::store::hub::HubStore;
use crate::store::mirror::Mirror;
use crate::store::shared::follow::{self as shared, SharedFollower};
use crate::store::shared::{Fault, Revision, Shared, write};
use crate::store::{Reached, StoreAddress};

/// The store as it is followed, and the hub that it is, if it is one.
pub(super) fn followed(
    settings: &Settings,
    for_others: bool,
) -> Result<(Option<Arc<HubStore>>, Option<Source>), Fault> {
    let hub = settings.store.as_ref().and_then(StoreAddress::hub);
    let hub = hub.map(|hub| Arc::new(HubStore::new(hub.clone())));
    let source = |store| match &hub {
        // One connection, for all that is asked of a hub.
        Some(hub) => Ok(Source::shared(hub.clone())),
        None => Source::of(store, settings.resync, for_others),
    };
    let source = settings.store.as_ref().map(source).transpose()?;
    Ok((hub, source))
}

/// A store that is followed.
pub(super) enum Source {
    /// And where it is, and what others may know of it.
    Directory(Box<Follower>, (PathBuf, Arc<Mirror>)),
    /// And the store itself.
    Shared(SharedFollower, Arc<dyn Shared>),
}

impl Source {
    fn of(store: &StoreAddress, resync: Duration, for_others: bool) -> Result<Self, Fault> {
        Ok(match store.reach()? {
            Reached::Directory(path) => {
                let mirror = Arc::new(Mirror::counting(path.display().to_string()));
                let follower = Follower::new(path, resync);
                // Where nobody follows it through us, nothing is kept twice.
                let follower = if for_others { follower.mirrored(mirror.clone()) } else { follower };
                Self::Directory(Box::new(follower), (path.to_owned(), mirror))
            }
            Reached::Shared(store) => Self::shared(store),
        })
    }

    fn shared(store: Arc<dyn Shared>) -> Self {
        Self::Shared(SharedFollower::new(store.clone()), store)
    }

    /// The state of the store that is known, where it has any.
    fn revision(&self) -> Option<Revision> {
        match self {
            Self::Directory(_, (_, mirror)) => mirror.revision(),
            Self::Shared(follower, _) => follower.revision().cloned(),
        }
    }

    /// The store as it is served to others.
    pub(super) fn behind(&self, control: &Arc<Control>, runtime: &Handle) -> Behind {
        let (keeper, mirror) = match self {
            Self::Directory(_, told) => {
                let (path, mirror) = told.clone();
                (Keeper::Directory(path), mirror)
            }
            Self::Shared(follower, store) => (Keeper::Shared(store.clone()), follower.mirror().clone()),
        };
        let followed = write::Followed { mirror, control: control.clone() };
        Behind::new(keeper, followed, runtime.clone())
    }

    fn remember(&mut self, lists: Vec<Vec<KeptText>>) -> Vec<Vec<FileChange>> {
        match self {
            Self::Directory(follower, _) => follower.remember(lists),
            Self::Shared(follower, _) => follower.remember(lists),
        }
    }

    /// Reads the whole store; what is different from what is known, and why it cannot be read.
    fn read_everything(&mut self, runtime: &Handle) -> (Vec<FileChange>, Option<String>) {
        match self {
            Self::Directory(follower, _) => follower.read_everything(),
            Self::Shared(follower, _) => runtime.block_on(follower.read_everything()),
        }
    }

    pub(super) fn follow(self, reloads: mpsc::Receiver<ReloadRequest>, control: Arc<Control>) -> Task {
        match self {
            Self::Directory(follower, _) => Box::pin(directory::follow(*follower, reloads, control)),
            Self::Shared(follower, _) => Box::pin(shared::follow(follower, reloads, control)),
        }
    }
}

/// Takes in the blueprints, those of the store and `given` ones.
pub(super) fn take_in(
    given: Vec<FileChange>,
    mut follower: Option<&mut Source>,
    cache: Option<&Cache>,
    control: &Control,
    runtime: &Handle,
) {
    let mut changes = given;
    if let Some(follower) = &mut follower {
        if let Some(cache) = cache {
            take_kept(cache, follower, control);
        }
        let (read, problem) = follower.read_everything(runtime);
        changes.extend(read);
        control.store_problem(problem);
    }
    control.apply(&changes, Trigger::Start);
    control.at_revision(follower.and_then(|follower| follower.revision()));
}

/// Begins with what was kept of the store when it was last read.
fn take_kept(cache: &Cache, follower: &mut Source, control: &Control) {
    match cache.load() {
        Ok(None) => {}
        Ok(Some(kept)) => {
            control.from_cache(kept.saved);
            for changes in follower.remember(kept.lists) {
                control.apply(&changes, Trigger::Cache);
            }
        }
        Err(error) => {
            let path = cache.path();
            tracing::warn!(%error, path = %path.display(), "the cache is not used, and will be written anew");
        }
    }
}
