//! Reading a directory: stat first, content where that changed, and nothing half written.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use overlane_config::blueprint::MAX_FILE_BYTES;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::time::UnixMillis;

/// A file whose end was not announced is read when it has not changed for this long.
pub const QUIET: Duration = Duration::from_millis(150);

/// `O_NONBLOCK`: opening a FIFO or a device must not wait for its other end.
const NONBLOCK: i32 = 0o4000;

/// What is known to be whole, and so is read without waiting for quiet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Files that were closed after writing, or renamed to their name.
    pub files: BTreeSet<OsString>,
    /// Everything: at the start, on request, after a swap of the directory or of its link.
    pub all: bool,
}

impl Settled {
    /// Everything is.
    #[must_use]
    pub fn all() -> Self {
        Self { files: BTreeSet::new(), all: true }
    }

    /// Whether only some files are, so that nothing else needs a look.
    #[must_use]
    pub fn names_files(&self) -> bool {
        !self.all && !self.files.is_empty()
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The files whose content is different now.
    pub changes: Vec<FileChange>,
    /// Some file may still be being written: come again after this long.
    pub again_in: Option<Duration>,
    /// Why the directory as a whole cannot be read; everything read before stays.
    pub problem: Option<String>,
}

impl Scan {
    fn come_again_in(&mut self, wait: Duration) {
        self.again_in = Some(self.again_in.map_or(wait, |before| before.min(wait)));
    }
}

/// What tells two versions of a file apart without reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file as it was last read.
#[derive(Debug)]
struct Known {
    /// `None` where the same stamp may be another content: it was read soon after it was written,
    /// and the clock of a file system ticks in milliseconds.
    stamp: Option<Stamp>,
    /// The text, shared with the blueprints made from it; `None` where it could not be read.
    source: Option<Arc<Source>>,
    /// Why it could not be read.
    problem: Option<String>,
    /// Since when it is not listed any more.
    absent_since: Option<SystemTime>,
}

/// A directory and what was last read from it.
#[derive(Debug)]
pub struct DirReader {
    path: PathBuf,
    files: BTreeMap<OsString, Known>,
    seen: bool,
    problem: Option<String>,
}

/// Whether a file of this name is a blueprint. Dot files are not: editors, Kubernetes and our own
/// writer keep their own business there.
#[must_use]
pub fn is_blueprint(name: &OsStr) -> bool {
    let path = Path::new(name);
    let extension = path.extension().and_then(OsStr::to_str);
    !name.as_encoded_bytes().starts_with(b".") && matches!(extension, Some("yaml" | "yml" | "json"))
}

impl DirReader {
    /// A directory of which nothing was read yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), files: BTreeMap::new(), seen: false, problem: None }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the files that `settled` names, or at every file where it names none, and reads
    /// those that changed. `now` decides what is quiet.
    pub fn scan(&mut self, settled: &Settled, now: SystemTime) -> Scan {
        let mut scan = Scan::default();
        if settled.names_files() {
            for name in &settled.files {
                self.look_at(name, true, now, &mut scan);
            }
        } else {
            match self.names() {
                Ok(names) => self.look_at_all(names, settled.all, now, &mut scan),
                // It may well be created later; until then it is an empty store.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.seen => {}
                Err(error) => {
                    let shown = self.path.display();
                    self.problem = Some(format!("cannot read the directory {shown}: {error}"));
                }
            }
        }
        scan.problem.clone_from(&self.problem);
        scan
    }

    fn look_at_all(&mut self, names: BTreeSet<OsString>, whole: bool, now: SystemTime, scan: &mut Scan) {
        self.seen = true;
        self.problem = None;
        self.take_away_absent(&names, whole, now, scan);
        for name in names {
            self.look_at(&name, whole, now, scan);
        }
    }

    /// Takes away what is not listed any more. Editors rename a file away before they write it
    /// anew, so that only what stays away is gone.
    fn take_away_absent(
        &mut self,
        listed: &BTreeSet<OsString>,
        at_once: bool,
        now: SystemTime,
        scan: &mut Scan,
    ) {
        let Self { path, files, .. } = self;
        files.retain(|name, known| {
            if listed.contains(name) {
                known.absent_since = None;
                return true;
            }
            let since = *known.absent_since.get_or_insert(now);
            if let Some(wait) = remaining_quiet(since, now).filter(|_| !at_once) {
                scan.come_again_in(wait);
                return true;
            }
            scan.changes.push(FileChange { path: shown(path, name), content: Content::Gone });
            false
        });
    }

    fn names(&self) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if is_blueprint(&name) {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// Reads one file, if it changed and is `whole` or quiet.
    fn look_at(&mut self, name: &OsStr, whole: bool, now: SystemTime, scan: &mut Scan) {
        let path = self.path.join(name);
        let known = self.files.get(name);
        let mut stamp = None;
        if let Ok(metadata) = fs::metadata(&path) {
            let found = Stamp::from(&metadata);
            if known.is_some_and(|known| known.stamp == Some(found) && known.problem.is_none()) {
                return;
            }
            match metadata.modified().ok().and_then(|modified| remaining_quiet(modified, now)) {
                Some(wait) if !whole => return scan.come_again_in(wait),
                Some(_) => {}
                None => stamp = Some(found),
            }
        }
        let shown = shown(&self.path, name);
        let (source, problem) = match read(&path, &shown) {
            Ok(source) => (Some(Arc::new(source)), None),
            // Gone between listing and reading: a later scan does not find it listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {
                return;
            }
            Err(error) => (None, Some(error.to_string())),
        };
        let same = known.is_some_and(|known| {
            known.problem == problem && same_text(known.source.as_ref(), source.as_ref())
        });
        if !same {
            let content = match (&source, &problem) {
                (Some(source), _) => Content::Text(source.clone()),
                (None, problem) => Content::Unreadable(problem.clone().unwrap_or_default()),
            };
            scan.changes.push(FileChange { path: shown, content });
        }
        self.files.insert(name.to_owned(), Known { stamp, source, problem, absent_since: None });
    }
}

fn shown(directory: &Path, name: &OsStr) -> Arc<str> {
    directory.join(name).display().to_string().into()
}

/// A ttl counts from the modification, so the same text written again is a change where it has one.
fn same_text(before: Option<&Arc<Source>>, after: Option<&Arc<Source>>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => {
            before.text == after.text && (before.modified == after.modified || !after.text.contains("ttl"))
        }
        (None, None) => true,
        _ => false,
    }
}

/// How long until what happened at `since` is quiet; `None` where it is. A time in the future (a
/// clock that was set, a file from elsewhere) says nothing.
fn remaining_quiet(since: SystemTime, now: SystemTime) -> Option<Duration> {
    let age = now.duration_since(since).ok()?;
    QUIET.checked_sub(age).filter(|wait| !wait.is_zero())
}

/// Reads a file whole.
///
/// # Errors
/// It is no regular file, too large, not UTF-8, or what the system says.
pub fn read(path: &Path, shown: &Arc<str>) -> io::Result<Source> {
    let irregular = || io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file");
    // Before it is opened: opening a FIFO would wake its writer.
    if !fs::metadata(path).map_err(|error| cannot_be_read(&error))?.is_file() {
        return Err(irregular());
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(NONBLOCK)
        .open(path)
        .map_err(|error| cannot_be_read(&error))?;
    let metadata = file.metadata().map_err(|error| cannot_be_read(&error))?;
    if !metadata.is_file() {
        return Err(irregular());
    }
    if metadata.len() > MAX_FILE_BYTES as u64 {
        return Err(too_large());
    }
    let modified = metadata.modified().ok().and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map(|since| UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
    Ok(Source::new(shown.clone(), read_text(file)?, modified))
}

/// Reads a stream whole, as a file's text.
///
/// # Errors
/// It is too large, not UTF-8, or what the system says.
pub fn read_text(stream: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| cannot_be_read(&error))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("is not UTF-8: byte {at} cannot be read as text"))
    })
}

fn cannot_be_read(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot be read: {error}"))
}

fn too_large() -> io::Error {
    let mib = MAX_FILE_BYTES / 1024 / 1024;
    io::Error::new(io::ErrorKind::InvalidData, format!("is larger than {mib} MiB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use tempfile::TempDir;

    fn store(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("file");
        }
        folder
    }

    /// Name and content of each change: the text, `-` when gone, `!` with the reason when unreadable.
    fn shown(scan: &Scan) -> Vec<(String, String)> {
        let shown = scan.changes.iter().map(|change| {
            let name = Path::new(&*change.path).file_name().expect("name").to_string_lossy().into_owned();
            let content = match &change.content {
                Content::Text(source) => source.text.clone(),
                Content::Gone => "-".to_owned(),
                Content::Unreadable(why) => format!("!{why}"),
            };
            (name, content)
        });
        shown.collect()
    }

    fn pair(name: &str, content: &str) -> (String, String) {
        (name.to_owned(), content.to_owned())
    }

    #[test]
    fn only_what_changed_is_reported() {
        let folder =
            store(&[("a.yaml", "1"), ("b.yml", "2"), ("c.json", "3"), ("d.txt", "4"), (".e.yaml", "5")]);
        let mut reader = DirReader::new(folder.path());
        let now = SystemTime::now();
        assert_eq!(
            shown(&reader.scan(&Settled::all(), now)),
            [pair("a.yaml", "1"), pair("b.yml", "2"), pair("c.json", "3")]
        );
        assert!(reader.scan(&Settled::all(), now).changes.is_empty());
        fs::write(folder.path().join("a.yaml"), "1").expect("touch");
        fs::write(folder.path().join("b.yml"), "22").expect("change");
        fs::remove_file(folder.path().join("c.json")).expect("delete");
        assert_eq!(shown(&reader.scan(&Settled::all(), now)), [pair("c.json", "-"), pair("b.yml", "22")]);
    }

    #[test]
    fn a_file_that_is_being_written_is_not_read_before_it_is_quiet_or_closed() {
        let folder = store(&[]);
        let mut reader = DirReader::new(folder.path());
        let now = SystemTime::now();
        reader.scan(&Settled::all(), now);
        let path = folder.path().join("a.yaml");
        fs::write(&path, "half").expect("write");
        File::options().write(true).open(&path).expect("open").set_modified(now).expect("time");
        let scan = reader.scan(&Settled::default(), now);
        assert!(scan.changes.is_empty());
        assert_eq!(scan.again_in, Some(QUIET));
        let closed = Settled { files: [OsString::from("a.yaml")].into(), all: false };
        assert_eq!(shown(&reader.scan(&closed, now)), [pair("a.yaml", "half")]);
        fs::write(&path, "whole").expect("write");
        File::options().write(true).open(&path).expect("open").set_modified(now).expect("time");
        assert_eq!(shown(&reader.scan(&Settled::default(), now + QUIET)), [pair("a.yaml", "whole")]);
    }

    #[test]
    fn only_what_stays_away_is_gone() {
        let folder = store(&[("a.yaml", "1")]);
        let path = folder.path().join("a.yaml");
        let mut reader = DirReader::new(folder.path());
        let now = SystemTime::now();
        reader.scan(&Settled::all(), now);
        fs::rename(&path, folder.path().join("a.yaml~")).expect("as editors do");
        let scan = reader.scan(&Settled::default(), now);
        assert!(scan.changes.is_empty());
        assert_eq!(scan.again_in, Some(QUIET));
        fs::write(&path, "2").expect("anew");
        let scan = reader.scan(&Settled::default(), now + 2 * QUIET);
        assert_eq!(shown(&scan), [pair("a.yaml", "2")]);
        fs::remove_file(&path).expect("delete");
        reader.scan(&Settled::default(), now + 3 * QUIET);
        assert_eq!(shown(&reader.scan(&Settled::default(), now + 4 * QUIET)), [pair("a.yaml", "-")]);
    }

    #[test]
    fn a_stamp_is_trusted_only_when_the_file_was_quiet_as_it_was_read() {
        let folder = store(&[("a.yaml", "1")]);
        let name = OsString::from("a.yaml");
        let mut reader = DirReader::new(folder.path());
        let now = SystemTime::now();
        reader.scan(&Settled::all(), now);
        assert!(reader.files[&name].stamp.is_none());
        reader.scan(&Settled::all(), now + QUIET);
        assert!(reader.files[&name].stamp.is_some());
    }

    #[test]
    fn files_that_settled_are_read_without_a_look_at_the_others() {
        let folder = store(&[]);
        let mut reader = DirReader::new(folder.path());
        let now = SystemTime::now();
        reader.scan(&Settled::all(), now);
        for name in ["a.yaml", "b.yaml"] {
            fs::write(folder.path().join(name), name).expect("file");
        }
        let closed =
            Settled { files: [OsString::from("b.yaml"), OsString::from("c.yaml")].into(), all: false };
        assert_eq!(shown(&reader.scan(&closed, now)), [pair("b.yaml", "b.yaml")]);
    }

    #[test]
    fn what_is_no_readable_text_freezes_with_the_reason() {
        let folder = store(&[]);
        fs::write(folder.path().join("a.yaml"), b"\xff").expect("file");
        fs::create_dir(folder.path().join("b.yaml")).expect("folder");
        std::os::unix::fs::symlink("nowhere", folder.path().join("c.yaml")).expect("link");
        File::create(folder.path().join("d.yaml"))
            .expect("file")
            .set_len(MAX_FILE_BYTES as u64 + 1)
            .expect("sparse");
        let scan = DirReader::new(folder.path()).scan(&Settled::all(), SystemTime::now());
        let reasons: Vec<_> = shown(&scan).into_iter().map(|(_, content)| content).collect();
        assert!(
            reasons[0].contains("not UTF-8: byte 0") && reasons[1].contains("not a regular file"),
            "{reasons:?}"
        );
        assert!(
            reasons[2].contains("cannot be read") && reasons[3].contains("larger than 48 MiB"),
            "{reasons:?}"
        );
    }

    #[test]
    fn a_directory_that_cannot_be_read_any_more_takes_nothing_away() {
        let folder = store(&[("a.yaml", "1")]);
        let mut reader = DirReader::new(folder.path());
        reader.scan(&Settled::all(), SystemTime::now());
        let moved = folder.path().with_extension("moved");
        fs::rename(folder.path(), &moved).expect("move");
        let scan = reader.scan(&Settled::all(), SystemTime::now());
        assert!(scan.changes.is_empty() && scan.problem.is_some());
        fs::rename(&moved, folder.path()).expect("move back");
        let scan = reader.scan(&Settled::all(), SystemTime::now());
        assert!(scan.changes.is_empty() && scan.problem.is_none());
    }

    #[test]
    fn a_directory_that_never_was_is_an_empty_store() {
        let scan = DirReader::new("/nonexistent/overlane").scan(&Settled::all(), SystemTime::now());
        assert!(scan.changes.is_empty() && scan.problem.is_none());
    }

    #[test]
    fn the_swap_of_the_data_link_is_seen() {
        let folder = store(&[]);
        let data = |name: &str, text: &str| {
            fs::create_dir(folder.path().join(name)).expect("folder");
            fs::write(folder.path().join(name).join("a.yaml"), text).expect("file");
        };
        let point = |to: &str| {
            let next = folder.path().join("..data_tmp");
            std::os::unix::fs::symlink(to, &next).expect("link");
            fs::rename(next, folder.path().join("..data")).expect("swap");
        };
        data("..1", "one");
        point("..1");
        std::os::unix::fs::symlink("..data/a.yaml", folder.path().join("a.yaml")).expect("link");
        let mut reader = DirReader::new(folder.path());
        assert_eq!(shown(&reader.scan(&Settled::all(), SystemTime::now())), [pair("a.yaml", "one")]);
        data("..2", "two");
        point("..2");
        assert_eq!(shown(&reader.scan(&Settled::all(), SystemTime::now())), [pair("a.yaml", "two")]);
    }
}
