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

/// What the watcher said about files since the last scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Files that were closed after writing, or renamed to their name: they are whole.
    pub files: BTreeSet<OsString>,
    /// Everything counts as whole: at the start, on request, after a swap of the directory's link.
    pub all: bool,
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
    stamp: Option<Stamp>,
    /// The text, shared with the blueprints made from it; `None` where it could not be read.
    source: Option<Arc<Source>>,
    /// Why it could not be read.
    problem: Option<String>,
}

/// A directory and what was last read from it.
#[derive(Debug)]
pub struct DirReader {
    path: PathBuf,
    files: BTreeMap<OsString, Known>,
    seen: bool,
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
        Self { path: path.into(), files: BTreeMap::new(), seen: false }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at every file and reads those that changed. `now` decides what is quiet.
    pub fn scan(&mut self, settled: &Settled, now: SystemTime) -> Scan {
        let names = match self.names() {
            Ok(names) => names,
            // It may well be created later; until then it is an empty store.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.seen => {
                return Scan::default();
            }
            Err(error) => {
                let problem = Some(format!("cannot read the directory {}: {error}", self.path.display()));
                return Scan { problem, ..Scan::default() };
            }
        };
        self.seen = true;
        let mut scan = Scan::default();
        let gone: Vec<_> = self.files.keys().filter(|known| !names.contains(*known)).cloned().collect();
        for name in gone {
            self.files.remove(&name);
            scan.changes.push(FileChange { path: self.shown(&name), content: Content::Gone });
        }
        for name in names {
            self.look_at(&name, settled, now, &mut scan);
        }
        scan
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

    fn shown(&self, name: &OsStr) -> Arc<str> {
        self.path.join(name).display().to_string().into()
    }

    fn look_at(&mut self, name: &OsStr, settled: &Settled, now: SystemTime, scan: &mut Scan) {
        let path = self.path.join(name);
        let known = self.files.get(name);
        let stamp = match fs::metadata(&path) {
            Ok(metadata) => {
                let stamp = Stamp::from(&metadata);
                if known.is_some_and(|known| known.stamp == Some(stamp) && known.problem.is_none()) {
                    return;
                }
                let whole = settled.all || settled.files.contains(name);
                if let Some(wait) = remaining_quiet(&metadata, now).filter(|_| !whole) {
                    scan.again_in = Some(scan.again_in.map_or(wait, |before| before.min(wait)));
                    return;
                }
                Some(stamp)
            }
            Err(_) => None,
        };
        let read = read(&path, &self.shown(name));
        let (source, problem) = match read {
            Ok(source) => (Some(Arc::new(source)), None),
            // Gone between listing and reading: the next scan sees it gone.
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
            scan.changes.push(FileChange { path: self.shown(name), content });
        }
        self.files.insert(name.to_owned(), Known { stamp, source, problem });
    }
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

/// How long until a file has been quiet for long enough; `None` where it has. A time in the future
/// (a clock that was set, a file from elsewhere) says nothing.
fn remaining_quiet(metadata: &Metadata, now: SystemTime) -> Option<Duration> {
    let age = now.duration_since(metadata.modified().ok()?).ok()?;
    QUIET.checked_sub(age).filter(|wait| !wait.is_zero())
}

/// Reads a file whole.
///
/// # Errors
/// It is no regular file, too large, not UTF-8, or what the system says.
pub fn read(path: &Path, shown: &Arc<str>) -> io::Result<Source> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(NONBLOCK)
        .open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot be read: {error}")))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
    }
    let limit = MAX_FILE_BYTES as u64;
    let mib = MAX_FILE_BYTES / 1024 / 1024;
    let too_large = || io::Error::new(io::ErrorKind::InvalidData, format!("is larger than {mib} MiB"));
    if metadata.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot be read: {error}")))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(too_large());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("is not UTF-8: byte {at} cannot be read as text"))
    })?;
    let since = metadata.modified().ok().and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
    let modified = since.map(|since| UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
    Ok(Source { path: shown.clone(), text, modified })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use tempfile::TempDir;

    const ALL: Settled = Settled { files: BTreeSet::new(), all: true };

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
            shown(&reader.scan(&ALL, now)),
            [pair("a.yaml", "1"), pair("b.yml", "2"), pair("c.json", "3")]
        );
        assert!(reader.scan(&ALL, now).changes.is_empty());
        fs::write(folder.path().join("a.yaml"), "1").expect("touch");
        fs::write(folder.path().join("b.yml"), "22").expect("change");
        fs::remove_file(folder.path().join("c.json")).expect("delete");
        assert_eq!(shown(&reader.scan(&ALL, now)), [pair("c.json", "-"), pair("b.yml", "22")]);
    }

    #[test]
    fn a_file_that_is_being_written_is_not_read_before_it_is_quiet_or_closed() {
        let folder = store(&[]);
        let mut reader = DirReader::new(folder.path());
        let now = SystemTime::now();
        reader.scan(&ALL, now);
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
    fn what_is_no_readable_text_freezes_with_the_reason() {
        let folder = store(&[]);
        fs::write(folder.path().join("a.yaml"), b"\xff").expect("file");
        fs::create_dir(folder.path().join("b.yaml")).expect("folder");
        std::os::unix::fs::symlink("nowhere", folder.path().join("c.yaml")).expect("link");
        File::create(folder.path().join("d.yaml"))
            .expect("file")
            .set_len(MAX_FILE_BYTES as u64 + 1)
            .expect("sparse");
        let scan = DirReader::new(folder.path()).scan(&ALL, SystemTime::now());
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
        reader.scan(&ALL, SystemTime::now());
        let moved = folder.path().with_extension("moved");
        fs::rename(folder.path(), &moved).expect("move");
        let scan = reader.scan(&ALL, SystemTime::now());
        assert!(scan.changes.is_empty() && scan.problem.is_some());
        fs::rename(&moved, folder.path()).expect("move back");
        let scan = reader.scan(&ALL, SystemTime::now());
        assert!(scan.changes.is_empty() && scan.problem.is_none());
    }

    #[test]
    fn a_directory_that_never_was_is_an_empty_store() {
        let scan = DirReader::new("/nonexistent/overlane").scan(&ALL, SystemTime::now());
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
        assert_eq!(shown(&reader.scan(&ALL, SystemTime::now())), [pair("a.yaml", "one")]);
        data("..2", "two");
        point("..2");
        assert_eq!(shown(&reader.scan(&ALL, SystemTime::now())), [pair("a.yaml", "two")]);
    }
}
