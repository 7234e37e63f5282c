//! What was last good, kept on this machine: a process that starts while its store cannot be reached serves
//! that.
//!
//! One file for each store, written by the control side: beside, synced, renamed. Its lines are JSON:
//!
//! ```text
//! {"overlane-cache":1,"store":"dir:/etc/overlane","saved":1800000000000}
//! {"list":0,"file":"alice.yaml","modified":1799999999000,"text":"name: alice\n…"}   what is in force, and after
//! {"list":1,"file":"alice.yaml","modified":1799999999500,"text":"name: [\n"}        it what was read: a bad edit
//! {"texts":2,"crc32":"0a1b2c3d"}
//! ```
//!
//! It knows texts and their names; what they mean, and what kind of store they are from, it does not.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use overlane_config::diagnostic::Source;
use overlane_config::time::UnixMillis;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use super::StoreAddress;
use crate::clock;
use crate::control::Control;

/// The format that is written, and the only one that is read.
const FORMAT: u32 = 1;
/// A larger cache is neither written nor read: a hundred thousand environments take some 50 MiB.
const MAX_BYTES: u64 = 1 << 30;
/// Between two writes at least; the first after a while is at once.
const PAUSE: Duration = Duration::from_secs(1);
/// A write that took long is followed by a pause this many times longer: at most a twentieth of the time is
/// spent writing, however large the store and however often it changes.
const DUTY: u32 = 20;
/// What changes nothing that is routed, such as leases that are renewed, is kept so long afterwards: they are, all the time.
const RENEWALS: Duration = Duration::from_secs(30);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(10);

/// What was once read of a file of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptText {
    /// The file's name in the store.
    pub name: String,
    /// The text.
    pub text: String,
    /// When the file was modified; a ttl counts from here.
    pub modified: Option<UnixMillis>,
}

/// What a cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// When it was written.
    pub saved: UnixMillis,
    /// Its texts, to be taken in one list after the other; see [`Lineages::texts`].
    ///
    /// [`Lineages::texts`]: overlane_config::lineage::Lineages::texts
    pub lists: Vec<Vec<KeptText>>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(rename = "overlane-cache")]
    format: u32,
    store: String,
    saved: u64,
}

/// A line with a text.
#[derive(Serialize, Deserialize)]
struct Line<'l> {
    list: usize,
    file: std::borrow::Cow<'l, str>,
    modified: Option<u64>,
    text: std::borrow::Cow<'l, str>,
}

/// The last line.
#[derive(Serialize, Deserialize)]
struct Tail {
    texts: usize,
    /// Of all lines before this one.
    crc32: String,
}

/// How often it was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// And is good.
    pub written: u64,
    /// And could not be.
    pub failed: u64,
}

/// Makes the directory of a cache where it is not there: what is in it is nobody else's business.
///
/// # Errors
/// What the system says.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// The cache of one store.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    /// The file's name without its ending.
    name: String,
    store: String,
    /// Which texts it holds: how often some were taken in until then.
    saved: Mutex<Option<u64>>,
    written: AtomicU64,
    failed: AtomicU64,
}

impl Cache {
    /// The cache of `store` in a directory, which others may share.
    #[must_use]
    pub fn new(directory: &Path, store: &StoreAddress) -> Self {
        let store = store.absolute();
        let readable: String =
            store.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let end = readable.trim_matches('-');
        let end = &end[end.len().saturating_sub(64)..];
        let name = format!("{}-{:08x}", end.trim_start_matches('-'), crc32fast::hash(store.as_bytes()));
        Self {
            directory: directory.to_owned(),
            name,
            store,
            saved: Mutex::default(),
            written: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.cache", self.name))
    }

    /// How often it was written.
    #[must_use]
    pub fn figures(&self) -> CacheFigures {
        CacheFigures { written: self.written.load(Relaxed), failed: self.failed.load(Relaxed) }
    }

    /// Reads it; `None` where there is none.
    ///
    /// # Errors
    /// It is damaged, of another format or of another store: then it is of no use, and is written anew.
    pub fn load(&self) -> io::Result<Option<Kept>> {
        let mut bytes = Vec::new();
        match File::open(self.path()) {
            Ok(file) => file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(too_large());
        }
        let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("is damaged: {why}"));
        let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is no text"))?;
        let (lines, tail) = split_tail(text).ok_or_else(|| damaged("its end is missing"))?;
        let (head, lines_of_texts) = lines.split_once('\n').ok_or_else(|| damaged("its head is missing"))?;
        // Before the sum, so that another format is told as such.
        let head: Head = serde_json::from_str(head).map_err(|_| damaged("its head cannot be read"))?;
        if head.format != FORMAT {
            let why = format!("is of format {}, and this version reads {FORMAT}", head.format);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let tail: Tail = serde_json::from_str(tail).map_err(|_| damaged("its end is missing"))?;
        if tail.crc32 != sum(crc32fast::hash(lines.as_bytes())) {
            return Err(damaged("its checksum is another one"));
        }
        if head.store != self.store {
            let why = format!("is of another store, {}", head.store);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut lists: Vec<Vec<KeptText>> = Vec::new();
        for line in lines_of_texts.lines() {
            let line: Line<'_> = serde_json::from_str(line).map_err(|error| damaged(&error.to_string()))?;
            // They are written in this order.
            if line.list > lists.len() {
                return Err(damaged("a list is missing"));
            }
            lists.resize_with(lists.len().max(line.list + 1), Vec::new);
            lists[line.list].push(KeptText {
                name: line.file.into_owned(),
                text: line.text.into_owned(),
                modified: line.modified.map(UnixMillis),
            });
        }
        if lists.iter().map(Vec::len).sum::<usize>() != tail.texts {
            return Err(damaged("there is another number of texts in it"));
        }
        Ok(Some(Kept { saved: UnixMillis(head.saved), lists }))
    }

    /// Writes what stands now, where that is newer than what it holds; whether it holds it now. Where the
    /// store cannot be read there is nothing newer.
    ///
    /// # Errors
    /// What the system says; the file is as it was then.
    pub fn save(&self, control: &Control) -> io::Result<bool> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if control.store_unreadable() {
            return Ok(true);
        }
        let (taken, texts) = control.texts();
        if *saved == Some(taken) {
            return Ok(true);
        }
        let outcome = self.write(&texts);
        match &outcome {
            Ok(true) => {
                *saved = Some(taken);
                self.written.fetch_add(1, Relaxed);
            }
            // Another process of the same store writes: the same.
            Ok(false) => {}
            Err(_) => {
                self.failed.fetch_add(1, Relaxed);
            }
        }
        outcome
    }

    /// Writes these texts; not where another process does so just now.
    ///
    /// # Errors
    /// What the system says; the file is as it was then.
    fn write(&self, lists: &[Vec<Arc<Source>>]) -> io::Result<bool> {
        make_directory(&self.directory)?;
        let at = |ending: &str| self.directory.join(format!(".{}.{ending}", self.name));
        let open = |options: &mut OpenOptions, path: &Path| options.write(true).mode(0o600).open(path);
        let lock = open(OpenOptions::new().create(true).truncate(false), &at("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // One that is there was left behind by a process that was killed.
        let beside = at("new");
        let written = open(OpenOptions::new().create(true).truncate(true), &beside)
            .and_then(|file| write_lines(file, &self.store, lists))
            .and_then(|()| fs::rename(&beside, self.path()))
            .and_then(|()| File::open(&self.directory)?.sync_all());
        if written.is_err() {
            // On a full disk it takes room.
            let _ = fs::remove_file(&beside);
        }
        written.map(|()| true)
    }
}

/// Everything before the last line, and that.
fn split_tail(text: &str) -> Option<(&str, &str)> {
    let at = text.strip_suffix('\n')?.rfind('\n')? + 1;
    Some(text.split_at(at))
}

fn write_lines(file: File, store: &str, lists: &[Vec<Arc<Source>>]) -> io::Result<()> {
    let mut out = Summed { out: BufWriter::new(file), sum: crc32fast::Hasher::new(), bytes: 0 };
    let head = Head { format: FORMAT, store: store.to_owned(), saved: clock::now().0 };
    out.line(&head)?;
    let numbered =
        lists.iter().enumerate().flat_map(|(list, texts)| texts.iter().map(move |text| (list, text)));
    for (list, source) in numbered {
        let file = Path::new(&*source.path).file_name().unwrap_or_default().to_string_lossy();
        let modified = source.modified.map(|at| at.0);
        out.line(&Line { list, file, modified, text: (&*source.text).into() })?;
        if out.bytes > MAX_BYTES {
            return Err(too_large());
        }
    }
    let tail = Tail { texts: lists.iter().map(Vec::len).sum(), crc32: sum(out.sum.clone().finalize()) };
    out.line(&tail)?;
    out.out.into_inner()?.sync_all()
}

fn sum(crc32: u32) -> String {
    format!("{crc32:08x}")
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("is larger than {} MiB", MAX_BYTES >> 20))
}

/// Writes on, and sums up.
struct Summed {
    out: BufWriter<File>,
    sum: crc32fast::Hasher,
    bytes: u64,
}

impl Summed {
    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self, line)?;
        self.write_all(b"\n")
    }
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.sum.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Waits until there is something to keep that was not: at once where something is routed otherwise. False when nobody can publish
/// any more.
async fn changed(generations: &mut watch::Receiver<u64>, taken: &mut watch::Receiver<u64>) -> bool {
    tokio::select! {
        published = generations.changed() => return published.is_ok(),
        renewed = taken.changed() => if renewed.is_err() { return false },
    }
    !matches!(timeout(RENEWALS, generations.changed()).await, Ok(Err(_)))
}

/// Writes the cache after each change, at once after a while without one. Never ends.
pub async fn keep(cache: Arc<Cache>, control: Arc<Control>) {
    let (mut generations, mut taken) = (control.published().generations(), control.taken());
    generations.mark_changed();
    let mut failing = false;
    while changed(&mut generations, &mut taken).await {
        loop {
            taken.borrow_and_update();
            let began = Instant::now();
            let saved = tokio::task::spawn_blocking({
                let (cache, control) = (cache.clone(), control.clone());
                move || cache.save(&control)
            });
            let saved = saved.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            let path = cache.path();
            match &saved {
                Ok(_) if failing => tracing::info!(path = %path.display(), "the cache can be written again"),
                Err(error) if !failing => tracing::error!(
                    %error, path = %path.display(),
                    "the cache cannot be written: a restart without the store would serve what it held before"
                ),
                _ => {}
            }
            failing = saved.is_err();
            if let Ok(true) = saved {
                tokio::time::sleep(PAUSE.max(began.elapsed() * DUTY)).await;
                break;
            }
            tokio::time::sleep(if failing { RETRY } else { PAUSE }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Trigger;
    use crate::names::Names;
    use overlane_config::lineage::{Content, FileChange, Rules};
    use tempfile::TempDir;

    fn change(name: &str, text: &str) -> FileChange {
        let source = Source::new(format!("/store/{name}").into(), text.to_owned(), Some(UnixMillis(7)));
        FileChange { path: source.path.clone(), content: Content::Text(Arc::new(source)) }
    }

    fn baseline(port: u16) -> String {
        format!(
            "name: staging\nrouting: {{mode: baseline}}\nservices: [{{name: web, url: 'http://127.0.0.1:{port}'}}]\n"
        )
    }

    fn control(files: &[FileChange]) -> Control {
        let control = Control::new(Rules::default(), Arc::default(), Names::none());
        control.apply(files, Trigger::Start);
        control
    }

    fn cache(folder: &TempDir) -> Cache {
        Cache::new(&folder.path().join("cache"), &StoreAddress::directory("/store"))
    }

    fn kept(name: &str, text: &str) -> KeptText {
        KeptText { name: name.to_owned(), text: text.to_owned(), modified: Some(UnixMillis(7)) }
    }

    fn lists(cache: &Cache) -> Vec<Vec<KeptText>> {
        cache.load().expect("good").expect("there").lists
    }

    #[test]
    fn what_stands_is_kept_and_what_was_read_last_as_well() {
        let folder = tempfile::tempdir().expect("folder");
        let (good, bad) = (baseline(1), "name: [\n");
        let control = control(&[change("staging.yaml", &good), change("never.yaml", bad)]);
        let cache = cache(&folder);
        assert_eq!(cache.load().expect("none"), None);
        assert!(cache.save(&control).expect("saved"));
        assert_eq!(lists(&cache), [[kept("staging.yaml", &good)], [kept("never.yaml", bad)]]);
        control.apply(&[change("staging.yaml", bad)], Trigger::Change);
        assert!(cache.save(&control).expect("saved"));
        let read = vec![kept("never.yaml", bad), kept("staging.yaml", bad)];
        assert_eq!(lists(&cache), [vec![kept("staging.yaml", &good)], read]);
        assert_eq!(cache.figures(), CacheFigures { written: 2, failed: 0 });
    }

    #[test]
    fn what_is_held_already_is_not_written_again_nor_is_anything_while_the_store_is_away() {
        let folder = tempfile::tempdir().expect("folder");
        let control = control(&[change("staging.yaml", &baseline(1))]);
        let cache = cache(&folder);
        cache.save(&control).expect("saved");
        cache.save(&control).expect("held");
        control.store_problem(Some("gone".to_owned()));
        control.apply(&[change("staging.yaml", &baseline(2))], Trigger::Change);
        cache.save(&control).expect("nothing newer");
        assert_eq!(cache.figures().written, 1);
    }

    #[test]
    fn a_lease_that_was_renewed_is_kept_though_it_changes_nothing_that_is_routed() {
        let folder = tempfile::tempdir().expect("folder");
        let overlay = "name: alice\nrouting: {mode: overlay, baselineId: staging}\nservices: [{name: web}]\n";
        let renewed = |until: &str| {
            let text = format!(
                "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {{name: alice}}\nspec:\n  services:\n  \
                 - {{name: web, url: 'http://127.0.0.1:9', expiresAt: '{until}'}}\n"
            );
            change("alice.attached.yaml", &text)
        };
        let first = renewed("2999-01-01T00:00:00Z");
        let control = control(&[change("staging.yaml", &baseline(1)), change("alice.yaml", overlay), first]);
        assert_eq!(control.problems(), Vec::<String>::new());
        let cache = cache(&folder);
        cache.save(&control).expect("saved");
        let generation = control.published().load().generation;
        control.apply(&[renewed("2999-01-01T00:02:00Z")], Trigger::Change);
        assert_eq!(control.published().load().generation, generation);
        cache.save(&control).expect("saved");
        let kept = lists(&cache);
        assert!(kept.iter().flatten().any(|kept| kept.text.contains("2999-01-01T00:02:00Z")), "{kept:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_routed_otherwise_is_kept_at_once_and_what_is_renewed_after_a_while() {
        let (generation, times) = (watch::Sender::new(0), watch::Sender::new(0));
        let (mut generations, mut taken) = (generation.subscribe(), times.subscribe());
        let begun = tokio::time::Instant::now();
        times.send_replace(1);
        generation.send_replace(1);
        assert!(changed(&mut generations, &mut taken).await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        taken.borrow_and_update();
        times.send_replace(2);
        assert!(changed(&mut generations, &mut taken).await);
        assert_eq!(begun.elapsed(), RENEWALS);
    }

    #[test]
    fn what_is_damaged_in_any_place_foreign_or_of_another_format_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let own = cache(&folder);
        own.save(&control(&[change("staging.yaml", &baseline(1))])).expect("saved");
        let good = fs::read(own.path()).expect("read");
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(own.path(), &bytes).expect("write");
            own.load().expect_err("damaged");
            fs::write(own.path(), &good[..at]).expect("write");
            own.load().expect_err("cut off");
        }
        fs::write(own.path(), &good).expect("write");
        own.load().expect("whole").expect("there");
        let other = Cache::new(&own.directory, &StoreAddress::directory("/other"));
        fs::copy(own.path(), other.path()).expect("copy");
        let why = other.load().expect_err("foreign").to_string();
        assert!(why.contains("of another store, dir:/store"), "{why}");
        let newer = String::from_utf8(good).expect("text").replacen(":1,", ":2,", 1);
        fs::write(own.path(), newer).expect("write");
        let why = own.load().expect_err("newer").to_string();
        assert!(why.contains("is of format 2, and this version reads 1"), "{why}");
    }

    #[test]
    fn while_another_process_writes_it_waits_and_what_a_killed_one_left_is_overwritten() {
        let folder = tempfile::tempdir().expect("folder");
        let control = control(&[change("staging.yaml", &baseline(1))]);
        let cache = cache(&folder);
        fs::create_dir(&cache.directory).expect("directory");
        let lock = File::create(cache.directory.join(format!(".{}.lock", cache.name))).expect("lock");
        fs::write(cache.directory.join(format!(".{}.new", cache.name)), "half a").expect("left behind");
        lock.lock().expect("locked");
        assert!(!cache.save(&control).expect("another one writes"));
        drop(lock);
        assert!(cache.save(&control).expect("saved"));
        assert_eq!(lists(&cache).len(), 1);
    }

    #[test]
    fn where_it_cannot_be_written_what_it_held_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let control = control(&[change("staging.yaml", &baseline(1))]);
        let cache = cache(&folder);
        cache.save(&control).expect("saved");
        fs::create_dir(cache.directory.join(format!(".{}.new", cache.name))).expect("in its way");
        control.apply(&[change("staging.yaml", &baseline(2))], Trigger::Change);
        cache.save(&control).expect_err("cannot be written");
        assert_eq!(cache.figures(), CacheFigures { written: 1, failed: 1 });
        assert_eq!(lists(&cache), [[kept("staging.yaml", &baseline(1))]]);
    }
}
