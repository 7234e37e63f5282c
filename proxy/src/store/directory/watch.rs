//! Watching a directory: what the kernel tells about it becomes nudges to look.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{Event, EventHandler, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::read::{Files, is_blueprint};

/// What was told since it was last taken; bounded by the number of files, however many events come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// What is whole, and can be read at once: closed after writing, renamed to its name, or everything
    /// after a swap of the directory or of its link.
    pub settled: Files,
    /// To what else happened: it is worth a look when that is quiet.
    pub unsettled: Files,
}

impl Told {
    fn files(&mut self, whole: bool) -> &mut Files {
        if whole { &mut self.settled } else { &mut self.unsettled }
    }

    /// Of what happens to a file the last counts: who closes it leaves it whole, and who writes to it
    /// then does not.
    fn file(&mut self, name: &OsStr, whole: bool) {
        self.files(!whole).names.remove(name);
        self.files(whole).names.insert(name.to_owned());
    }
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
            if *self.told() != Told::default() {
                return;
            }
            next.await;
        }
    }

    /// Takes what was told.
    #[must_use]
    pub fn take(&self) -> Told {
        std::mem::take(&mut *self.told())
    }

    fn ring(&self, tell: impl FnOnce(&mut Told)) {
        tell(&mut self.told());
        self.rung.notify_one();
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
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
        Self::heard_by(path, move |event: notify::Result<Event>| match event {
            Ok(event) => hear(&event, &directory, &bell),
            Err(_) => bell.ring(|told| told.unsettled.all = true),
        })
    }

    /// Watches `path`, and tells `hear` all that happens in it.
    ///
    /// # Errors
    /// The system has no watch left.
    pub fn heard_by(path: &Path, hear: impl EventHandler) -> notify::Result<Self> {
        let mut watcher = notify::recommended_watcher(hear)?;
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
        return bell.ring(|told| told.unsettled.all = true);
    }
    // Of a rename that is told as one event, only the second path names a whole file: an editor
    // may be writing to the first one anew.
    let whole = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => event.paths.last(),
        EventKind::Access(_) => return,
        _ => None,
    };
    for path in &event.paths {
        let is_whole = Some(path) == whole;
        let name = path.file_name().unwrap_or_default();
        let inside = path.parent() == Some(directory);
        if path == directory || name == "..data" {
            bell.ring(|told| told.files(is_whole).all = true);
        } else if inside && is_blueprint(name) {
            bell.ring(|told| told.file(name, is_whole));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    /// Waits until what is told so far, taken together, satisfies `enough`.
    async fn told(bell: &Bell, enough: impl Fn(&Told) -> bool) -> Told {
        let mut all = Told::default();
        let gather = async {
            while !enough(&all) {
                bell.rung().await;
                let Told { settled, unsettled } = bell.take();
                for (all, files) in [(&mut all.settled, settled), (&mut all.unsettled, unsettled)] {
                    all.names.extend(files.names);
                    all.all |= files.all;
                }
            }
        };
        let gathered = tokio::time::timeout(Duration::from_secs(10), gather).await;
        assert!(gathered.is_ok(), "told only {all:?}");
        all
    }

    fn watched(path: &Path) -> (Arc<Bell>, DirWatch) {
        let bell = Arc::new(Bell::default());
        let watch = DirWatch::new(path, &bell).expect("watch");
        (bell, watch)
    }

    #[tokio::test]
    async fn a_file_that_was_closed_or_renamed_to_its_name_is_settled() {
        let folder = tempfile::tempdir().expect("folder");
        let (bell, _watch) = watched(folder.path());
        fs::write(folder.path().join("a.yaml"), "1").expect("write");
        fs::write(folder.path().join(".b.tmp"), "2").expect("write");
        fs::rename(folder.path().join(".b.tmp"), folder.path().join("b.yaml")).expect("rename");
        let told = told(&bell, |told| told.settled.names.contains(OsStr::new("b.yaml"))).await;
        assert_eq!(told.settled.names, ["a.yaml".into(), "b.yaml".into()].into());
        assert!(!told.settled.all);
    }

    #[test]
    fn what_is_written_to_after_it_was_closed_is_not_settled() {
        let (folder, bell) = (Path::new("/store"), Bell::default());
        let tell = |kind| hear(&Event::new(kind).add_path(folder.join("a.yaml")), folder, &bell);
        let (written, closed) =
            (EventKind::Modify(ModifyKind::Any), EventKind::Access(AccessKind::Close(AccessMode::Write)));
        let only = || Files { names: ["a.yaml".into()].into(), all: false };
        [written, closed].into_iter().for_each(tell);
        assert_eq!(bell.take(), Told { settled: only(), ..Told::default() });
        [closed, written].into_iter().for_each(tell);
        assert_eq!(bell.take(), Told { unsettled: only(), ..Told::default() });
    }

    #[tokio::test]
    async fn a_file_that_is_renamed_away_is_not_settled() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.yaml");
        fs::write(&path, "1").expect("write");
        let (bell, _watch) = watched(folder.path());
        fs::rename(&path, folder.path().join("a.yaml~")).expect("as vim does");
        let _half_written = fs::File::create(&path).expect("anew");
        fs::write(folder.path().join("z.yaml"), "last").expect("write");
        let told = told(&bell, |told| told.settled.names.contains(OsStr::new("z.yaml"))).await;
        assert_eq!(told.settled.names, ["z.yaml".into()].into());
        assert!(told.unsettled.names.contains(OsStr::new("a.yaml")) && !told.unsettled.all);
    }

    #[tokio::test]
    async fn the_swap_of_the_data_link_settles_everything() {
        let folder = tempfile::tempdir().expect("folder");
        let (bell, _watch) = watched(folder.path());
        std::os::unix::fs::symlink("..1", folder.path().join("..data_tmp")).expect("link");
        fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).expect("swap");
        told(&bell, |told| told.settled.all).await;
    }

    #[tokio::test]
    async fn a_directory_that_takes_the_place_of_the_watched_one_is_watched() {
        let folder = tempfile::tempdir().expect("folder");
        let store = folder.path().join("environments");
        fs::create_dir(&store).expect("store");
        let (bell, mut watch) = watched(&store);
        fs::create_dir(folder.path().join("next")).expect("next");
        fs::rename(&store, folder.path().join("old")).expect("away");
        fs::rename(folder.path().join("next"), &store).expect("in its place");
        told(&bell, |told| told.settled.all).await;
        watch.follow_replacement().expect("watch");
        fs::write(store.join("a.yaml"), "1").expect("write");
        told(&bell, |told| told.settled.names.contains(OsStr::new("a.yaml"))).await;
    }
}
