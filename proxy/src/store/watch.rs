//! Watching a directory: what the kernel tells about it becomes nudges to look.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::read::{Settled, is_blueprint};

/// What was told since it was last taken; bounded by the number of files, however many events come.
#[derive(Debug, Default)]
struct Told {
    settled: BTreeSet<OsString>,
    all: bool,
    anything: bool,
}

/// The bell that events ring.
#[derive(Debug, Default)]
pub struct Bell {
    told: Mutex<Told>,
    rung: Notify,
}

impl Bell {
    /// Completes when something was told and not yet taken.
    pub async fn rung(&self) {
        loop {
            let next = self.rung.notified();
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).anything {
                return;
            }
            next.await;
        }
    }

    /// Takes what was told.
    #[must_use]
    pub fn take(&self) -> Settled {
        let told = std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
        Settled { files: told.settled, all: told.all }
    }

    fn ring(&self, hear: impl FnOnce(&mut Told)) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        hear(&mut told);
        told.anything = true;
        drop(told);
        self.rung.notify_one();
    }
}

/// A watch on a directory and, for the case that it is replaced as a whole, on its parent.
pub struct DirWatch {
    watcher: RecommendedWatcher,
    path: PathBuf,
    /// Device and inode of the directory that is watched.
    identity: Option<(u64, u64)>,
}

impl DirWatch {
    /// Watches `path` and rings `bell`.
    ///
    /// # Errors
    /// The system has no watch left; changes are then only seen by the periodic check.
    pub fn new(path: &Path, bell: &Arc<Bell>) -> notify::Result<Self> {
        let directory = path.to_owned();
        let bell = bell.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) => hear(&event, &directory, &bell),
            Err(_) => bell.ring(|_| {}),
        })?;
        if let Some(parent) = parent(path) {
            watcher.watch(parent, RecursiveMode::NonRecursive)?;
        }
        let mut watch = Self { watcher, path: path.to_owned(), identity: None };
        watch.follow_replacement()?;
        Ok(watch)
    }

    /// Watches the directory anew if another one has taken its place.
    ///
    /// # Errors
    /// The system has no watch left.
    pub fn follow_replacement(&mut self) -> notify::Result<()> {
        let identity = std::fs::metadata(&self.path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if identity == self.identity {
            return Ok(());
        }
        // The old directory may be gone, and its watch with it.
        let _ = self.watcher.unwatch(&self.path);
        self.identity = None;
        if identity.is_some() {
            self.watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
            self.identity = identity;
        }
        Ok(())
    }
}

fn parent(path: &Path) -> Option<&Path> {
    match path.parent()? {
        parent if parent.as_os_str().is_empty() => Some(Path::new(".")),
        parent => Some(parent),
    }
}

fn hear(event: &Event, directory: &Path, bell: &Bell) {
    if event.need_rescan() {
        return bell.ring(|_| {});
    }
    let whole = matches!(
        event.kind,
        EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
    );
    if !whole && matches!(event.kind, EventKind::Access(_)) {
        return;
    }
    for path in &event.paths {
        let Some(name) = path.file_name() else {
            continue;
        };
        if path == directory || name == "..data" {
            bell.ring(|told| told.all |= whole);
        } else if is_blueprint(name) && path.parent() == Some(directory) {
            bell.ring(|told| {
                if whole {
                    told.settled.insert(name.to_owned());
                }
            });
        }
    }
}
