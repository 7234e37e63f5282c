//! Reading a directory: stat first, content where that changed, and nothing half written.
//!
//! A directory can have a hundred thousand files. At the start they are read on all cores; later only those
//! that events name, and now and then all are looked at in small steps, between which events are heard.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use foldhash::fast::RandomState;
use overlane_config::blueprint::MAX_FILE_BYTES;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::time::UnixMillis;

use crate::clock::Moment;
use crate::cores;

/// A file whose end was not announced is read when it has not changed for this long.
pub const QUIET: Duration = Duration::from_millis(150);

/// How many files one step of a survey looks at: some two milliseconds.
const STEP: usize = 500;

/// `O_NONBLOCK`: opening a FIFO or a device must not wait for its other end.
const NONBLOCK: i32 = 0o4000;

/// Some files of a directory, or all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// These.
    pub names: BTreeSet<OsString>,
    /// All.
    pub all: bool,
}

impl Files {
    /// Whether it is no file at all.
    #[must_use]
    pub fn none(&self) -> bool {
        !self.all && self.names.is_empty()
    }
}

/// What a look at files found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The files whose content is different now.
    pub changes: Vec<FileChange>,
    /// Files that may still be being written, or may come back.
    pub again: BTreeSet<OsString>,
    /// When they are worth another look.
    pub again_in: Option<Duration>,
    /// Why the directory as a whole cannot be read; everything read before stays.
    pub problem: Option<String>,
}

impl Scan {
    fn again(&mut self, name: &OsStr, wait: Duration) {
        self.again.insert(name.to_owned());
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
    /// The text, shared with the blueprints made from it, or why it could not be read.
    read: Result<Arc<Source>, String>,
    /// Since when it is not there any more.
    absent_since: Option<Instant>,
    /// The listing in which it was last seen.
    listing: u64,
}

/// What a look at one file found.
enum Found {
    /// What is known.
    Same,
    /// It is another one, and may still be being written: it is worth a look after this long.
    Restless(Stamp, Duration),
    /// It is not there.
    Absent,
    /// It was read.
    Read { stamp: Option<Stamp>, read: Result<Arc<Source>, String> },
}

/// A directory and what was last read from it.
#[derive(Debug)]
pub struct DirReader {
    path: PathBuf,
    files: HashMap<OsString, Known, RandomState>,
    /// Files that may still be being written, and since when they are as they are. That is not told from
    /// when they were modified, since clocks are set, and other machines have others.
    restless: HashMap<OsString, (Stamp, Instant), RandomState>,
    /// How often the directory was listed.
    listings: u64,
    /// The directory in which the files are that are known; `None` where another process read them.
    directory: Option<Identity>,
    problem: Option<String>,
}

/// Device, inode and, since inodes are given anew, when it was made.
type Identity = (u64, u64, Option<SystemTime>);

/// A look at every file, in steps.
#[derive(Debug)]
pub struct Survey {
    entries: fs::ReadDir,
    directory: Identity,
    /// Whether there was any blueprint so far.
    any: bool,
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
        Self {
            path: path.into(),
            files: HashMap::default(),
            restless: HashMap::default(),
            listings: 0,
            directory: None,
            problem: None,
        }
    }

    /// Takes `text` for what was last read of the file `name`, as another process did; returns it as it is
    /// shown here. The file may be another one by now, or gone.
    pub fn remember(&mut self, name: &OsStr, text: String, modified: Option<UnixMillis>) -> Arc<Source> {
        let source = Arc::new(Source::new(shown(&self.path.join(name)), text, modified));
        let read = Ok(source.clone());
        self.files.insert(name.to_owned(), Known { stamp: None, read, absent_since: None, listing: 0 });
        source
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at every file, on all cores, and reads those that changed; all of them are whole.
    pub fn read_all(&mut self, now: Moment) -> Scan {
        let mut scan = Scan::default();
        match self.listed() {
            Ok((directory, listed)) => {
                let any = !listed.is_empty();
                let look = |(name, regular): &(OsString, bool)| self.look_at(name, *regular, true, now);
                let found = cores::map(&listed, look);
                for ((name, _), found) in listed.into_iter().zip(found) {
                    self.take(name, found, now, &mut scan);
                }
                if self.believes(directory, any) {
                    self.take_away_unlisted(true, now, &mut scan);
                }
            }
            Err(error) => self.cannot_list(&error),
        }
        scan.problem.clone_from(&self.problem);
        scan
    }

    /// Looks at these files, which are `whole` or may still be being written, and reads those that changed.
    pub fn read_files(&mut self, names: &BTreeSet<OsString>, whole: bool, now: Moment) -> Scan {
        let mut scan = Scan::default();
        for name in names {
            let found = self.look_at(name, false, whole, now);
            self.take(name.clone(), found, now, &mut scan);
        }
        scan.problem.clone_from(&self.problem);
        scan
    }

    /// Begins to look at every file; `None` where the directory cannot be listed.
    pub fn survey(&mut self) -> Option<Survey> {
        let begun = self.list();
        let (directory, entries) = begun.map_err(|error| self.cannot_list(&error)).ok()?;
        Some(Survey { entries, directory, any: false })
    }

    /// Looks at some more files, which may still be being written, and reads those that changed; whether
    /// they were the last ones.
    pub fn step(&mut self, survey: &mut Survey, now: Moment) -> (Scan, bool) {
        let mut scan = Scan::default();
        let mut over = false;
        for _ in 0..STEP {
            match survey.entries.next() {
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if is_blueprint(&name) {
                        survey.any = true;
                        let found = self.look_at(&name, is_regular(&entry), false, now);
                        self.take(name, found, now, &mut scan);
                    }
                }
                Some(Err(error)) => {
                    self.cannot_list(&error);
                    over = true;
                }
                None => {
                    if self.believes(survey.directory, survey.any) {
                        self.take_away_unlisted(false, now, &mut scan);
                    }
                    over = true;
                }
            }
            if over {
                break;
            }
        }
        scan.problem.clone_from(&self.problem);
        (scan, over)
    }

    fn list(&mut self) -> io::Result<(Identity, fs::ReadDir)> {
        let directory = identity(&self.path)?;
        let entries = fs::read_dir(&self.path)?;
        self.listings += 1;
        Ok((directory, entries))
    }

    /// Whether what a listing of `directory` did not show is gone. Not where another directory has taken its
    /// place meanwhile; nor where it is another one than the files were read from and there is none: so
    /// does it look when a volume is not mounted, or not filled yet.
    fn believes(&mut self, directory: Identity, any: bool) -> bool {
        if !identity(&self.path).is_ok_and(|now| now == directory) {
            return false;
        }
        if any || self.files.is_empty() || self.directory == Some(directory) {
            self.directory = Some(directory);
            self.problem = None;
            return true;
        }
        self.problem = Some(format!(
            "the directory {} is empty, and another one than was last read (is it mounted?)",
            self.path.display()
        ));
        false
    }

    /// Whether the files that are known are, or were, in the directory that is there now.
    fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|now| Some(now) == self.directory)
    }

    /// The names of all blueprints, in order, and whether the listing itself says that it is a regular file.
    fn listed(&mut self) -> io::Result<(Identity, Vec<(OsString, bool)>)> {
        let mut listed = Vec::new();
        let (directory, entries) = self.list()?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if is_blueprint(&name) {
                listed.push((name, is_regular(&entry)));
            }
        }
        listed.sort();
        Ok((directory, listed))
    }

    fn cannot_list(&mut self, error: &io::Error) {
        // It may well be created later; until then it is an empty store.
        if error.kind() != io::ErrorKind::NotFound || self.listings > 0 || !self.files.is_empty() {
            self.problem = Some(format!("cannot read the directory {}: {error}", self.path.display()));
        }
    }

    /// Looks at one file, and reads it if it changed and is `whole` or quiet.
    fn look_at(&self, name: &OsStr, regular: bool, whole: bool, now: Moment) -> Found {
        let path = self.path.join(name);
        let known = self.files.get(name);
        // What is surely to be read, and can be opened without harm, says all the rest when it is open.
        if !(regular && whole && known.is_none()) {
            match fs::metadata(&path) {
                Ok(metadata) => {
                    let same =
                        |known: &Known| known.stamp == Some(Stamp::from(&metadata)) && known.read.is_ok();
                    if known.is_some_and(same) {
                        return Found::Same;
                    }
                    let stamp = Stamp::from(&metadata);
                    if let Some(wait) = self.until_quiet(name, stamp, now).filter(|_| !whole) {
                        return Found::Restless(stamp, wait);
                    }
                }
                Err(error) if is_absent(&path, &error) => return Found::Absent,
                Err(_) => {}
            }
        }
        let opened = if regular { open(&path) } else { open_checked(&path) };
        match opened.and_then(|(file, metadata)| Ok((read_open(file, &metadata, shown(&path))?, metadata))) {
            Ok((source, metadata)) => {
                let stamp = (!is_recent(&metadata, now.wall)).then(|| Stamp::from(&metadata));
                Found::Read { stamp, read: Ok(Arc::new(source)) }
            }
            Err(error) if is_absent(&path, &error) => Found::Absent,
            Err(error) => Found::Read { stamp: None, read: Err(error.to_string()) },
        }
    }

    /// How long until a file that has this stamp now is quiet; `None` where it is.
    fn until_quiet(&self, name: &OsStr, stamp: Stamp, now: Moment) -> Option<Duration> {
        match self.restless.get(name) {
            Some((before, since)) if *before == stamp => remaining_quiet(*since, now.steady),
            _ => Some(QUIET),
        }
    }

    /// Takes in what a look at a file found.
    fn take(&mut self, name: OsString, found: Found, now: Moment, scan: &mut Scan) {
        match &found {
            Found::Restless(stamp, _) => {
                let since = self.restless.entry(name.clone()).or_insert((*stamp, now.steady));
                if since.0 != *stamp {
                    *since = (*stamp, now.steady);
                }
            }
            _ => {
                self.restless.remove(&name);
            }
        }
        if let Found::Absent = found {
            // Where the whole directory is gone, or another one, that is a matter for the next listing.
            if self.is_there() {
                self.absent(&name, false, now, scan);
            }
            return;
        }
        let mut known = self.files.get_mut(&name);
        if let Some(known) = &mut known {
            known.absent_since = None;
            known.listing = self.listings;
        }
        match (known, found) {
            (_, Found::Restless(_, wait)) => scan.again(&name, wait),
            // What is known stays, and with it the only copy of the text.
            (Some(known), Found::Read { stamp, read }) if is_same(&known.read, &read) => known.stamp = stamp,
            (_, Found::Read { stamp, read }) => {
                let (path, content) = match &read {
                    Ok(source) => (source.path.clone(), Content::Text(source.clone())),
                    Err(why) => (shown(&self.path.join(&name)), Content::Unreadable(why.clone())),
                };
                scan.changes.push(FileChange { path, content });
                self.files.insert(name, Known { stamp, read, absent_since: None, listing: self.listings });
            }
            (_, Found::Same | Found::Absent) => {}
        }
    }

    /// Takes away what the last listing did not show.
    fn take_away_unlisted(&mut self, at_once: bool, now: Moment, scan: &mut Scan) {
        let unlisted = self.files.iter().filter(|(_, known)| known.listing != self.listings);
        // What is only remembered may be on its way into a directory that is being filled.
        let unlisted: BTreeMap<_, _> =
            unlisted.map(|(name, known)| (name.clone(), at_once && known.listing > 0)).collect();
        for (name, at_once) in unlisted {
            self.absent(&name, at_once, now, scan);
        }
    }

    /// Takes away a file that is not there. Editors rename a file away before they write it anew, so
    /// that only what stays away is gone.
    fn absent(&mut self, name: &OsStr, at_once: bool, now: Moment, scan: &mut Scan) {
        let Some(known) = self.files.get_mut(name) else { return };
        let since = *known.absent_since.get_or_insert(now.steady);
        if let Some(wait) = remaining_quiet(since, now.steady).filter(|_| !at_once) {
            return scan.again(name, wait);
        }
        self.files.remove(name);
        scan.changes.push(FileChange { path: shown(&self.path.join(name)), content: Content::Gone });
    }
}

/// Whether the listing itself says that it is a regular file: that costs nothing.
fn is_regular(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_file())
}

/// Whether there is nothing of this name, and not only nothing behind a link.
fn is_absent(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err()
}

fn shown(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

/// A ttl counts from the modification, so the same text written again is a change where it has one.
fn is_same(before: &Result<Arc<Source>, String>, after: &Result<Arc<Source>, String>) -> bool {
    match (before, after) {
        (Ok(before), Ok(after)) => {
            before.text == after.text && (before.modified == after.modified || !after.text.contains("ttl"))
        }
        (Err(before), Err(after)) => before == after,
        _ => false,
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino(), metadata.created().ok()))
}

/// Whether a file may be modified once more without another stamp. A time in the future (a clock that was
/// set, a file from elsewhere) says nothing; a file that is modified after the clock was set has another
/// one.
fn is_recent(metadata: &Metadata, now: SystemTime) -> bool {
    metadata.modified().is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age < QUIET))
}

/// How long until what is so since then is quiet; `None` where it is.
fn remaining_quiet(since: Instant, now: Instant) -> Option<Duration> {
    QUIET.checked_sub(now.saturating_duration_since(since)).filter(|wait| !wait.is_zero())
}

/// Reads a file whole, to be shown as `shown`.
///
/// # Errors
/// It is no regular file, too large, not UTF-8, or what the system says.
pub fn read(path: &Path, shown: &Arc<str>) -> io::Result<Source> {
    let (file, metadata) = open_checked(path)?;
    read_open(file, &metadata, shown.clone())
}

/// Opens what is a regular file. Opening a FIFO would wake its writer, so that is seen before.
fn open_checked(path: &Path) -> io::Result<(File, Metadata)> {
    match fs::metadata(path).map_err(|error| cannot_be_read(&error))?.is_file() {
        true => open(path),
        false => Err(irregular()),
    }
}

fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let opened = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path);
    let with_metadata = opened.and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    with_metadata.map_err(|error| cannot_be_read(&error))
}

fn read_open(file: File, metadata: &Metadata, shown: Arc<str>) -> io::Result<Source> {
    if !metadata.is_file() {
        return Err(irregular());
    }
    if metadata.len() > MAX_FILE_BYTES as u64 {
        return Err(too_large());
    }
    let modified = metadata.modified().ok().and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map(|since| UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
    // One byte more, so that the end is seen without more room.
    let bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1);
    Ok(Source::new(shown, read_into(bytes, file)?, modified))
}

/// Reads a stream whole, as a file's text.
///
/// # Errors
/// It is too large, not UTF-8, or what the system says.
pub fn read_text(stream: impl Read) -> io::Result<String> {
    read_into(Vec::new(), stream)
}

fn read_into(mut bytes: Vec<u8>, stream: impl Read) -> io::Result<String> {
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

fn irregular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")
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
                Content::Parsed(..) => unreachable!("reading does not parse"),
            };
            (name, content)
        });
        shown.collect()
    }

    /// A whole survey.
    fn surveyed(reader: &mut DirReader, now: Moment) -> Scan {
        let mut survey = reader.survey().expect("listed");
        let mut all = Scan::default();
        loop {
            let (scan, over) = reader.step(&mut survey, now);
            all.changes.extend(scan.changes);
            all.again.extend(scan.again);
            all.again_in = all.again_in.or(scan.again_in);
            if over {
                return all;
            }
        }
    }

    fn pair(name: &str, content: &str) -> (String, String) {
        (name.to_owned(), content.to_owned())
    }

    #[test]
    fn only_what_changed_is_reported() {
        let folder =
            store(&[("a.yaml", "1"), ("b.yml", "2"), ("c.json", "3"), ("d.txt", "4"), (".e.yaml", "5")]);
        let mut reader = DirReader::new(folder.path());
        let now = Moment::now();
        assert_eq!(
            shown(&reader.read_all(now)),
            [pair("a.yaml", "1"), pair("b.yml", "2"), pair("c.json", "3")]
        );
        assert!(reader.read_all(now).changes.is_empty());
        fs::write(folder.path().join("a.yaml"), "1").expect("touch");
        fs::write(folder.path().join("b.yml"), "22").expect("change");
        fs::remove_file(folder.path().join("c.json")).expect("delete");
        assert_eq!(shown(&reader.read_all(now)), [pair("b.yml", "22"), pair("c.json", "-")]);
    }

    #[test]
    fn a_file_that_is_being_written_is_not_read_before_it_is_quiet_or_closed() {
        let folder = store(&[]);
        let mut reader = DirReader::new(folder.path());
        let now = Moment::now();
        reader.read_all(now);
        let path = folder.path().join("a.yaml");
        fs::write(&path, "half").expect("write");
        File::options().write(true).open(&path).expect("open").set_modified(now.wall).expect("time");
        let scan = surveyed(&mut reader, now);
        assert!(scan.changes.is_empty());
        assert_eq!(scan.again_in, Some(QUIET));
        assert_eq!(shown(&reader.read_files(&["a.yaml".into()].into(), true, now)), [pair("a.yaml", "half")]);
        fs::write(&path, "whole").expect("write");
        File::options().write(true).open(&path).expect("open").set_modified(now.wall).expect("time");
        assert!(surveyed(&mut reader, now).changes.is_empty());
        assert_eq!(shown(&surveyed(&mut reader, now + QUIET)), [pair("a.yaml", "whole")]);
    }

    #[test]
    fn only_what_stays_away_is_gone() {
        let folder = store(&[("a.yaml", "1")]);
        let path = folder.path().join("a.yaml");
        let mut reader = DirReader::new(folder.path());
        let now = Moment::now();
        reader.read_all(now);
        fs::rename(&path, folder.path().join("a.yaml~")).expect("as editors do");
        let scan = surveyed(&mut reader, now);
        assert!(scan.changes.is_empty());
        assert_eq!(scan.again_in, Some(QUIET));
        fs::write(&path, "2").expect("anew");
        surveyed(&mut reader, now + QUIET);
        let scan = surveyed(&mut reader, now + 2 * QUIET);
        assert_eq!(shown(&scan), [pair("a.yaml", "2")]);
        fs::remove_file(&path).expect("delete");
        surveyed(&mut reader, now + 3 * QUIET);
        assert_eq!(shown(&surveyed(&mut reader, now + 4 * QUIET)), [pair("a.yaml", "-")]);
    }

    #[test]
    fn a_survey_of_many_files_goes_in_steps_and_misses_nothing_on_its_way() {
        let folder = store(&[]);
        for number in 0..2 * STEP + 100 {
            File::create(folder.path().join(format!("{number}.yaml"))).expect("file");
        }
        let mut reader = DirReader::new(folder.path());
        let now = Moment::now() + QUIET;
        assert_eq!(reader.read_all(now).changes.len(), 2 * STEP + 100);
        fs::remove_file(folder.path().join("7.yaml")).expect("delete");
        let mut survey = reader.survey().expect("listed");
        assert!(!reader.step(&mut survey, now).1);
        fs::write(folder.path().join("new.yaml"), "1").expect("file");
        let new = reader.read_files(&["new.yaml".into()].into(), true, now);
        assert_eq!(shown(&new), [pair("new.yaml", "1")]);
        assert!(!reader.step(&mut survey, now).1);
        let (last, over) = reader.step(&mut survey, now);
        assert!(over && last.changes.is_empty(), "{:?}", shown(&last));
        let again = reader.read_files(&last.again, false, now + QUIET);
        assert_eq!(shown(&again), [pair("7.yaml", "-")], "after {:?}", last.again);
    }

    #[test]
    fn of_what_is_read_again_and_is_the_same_there_is_one_copy() {
        let folder = store(&[("a.yaml", "1")]);
        let mut reader = DirReader::new(folder.path());
        let now = Moment::now();
        let first = reader.read_all(now);
        assert!(reader.read_all(now).changes.is_empty());
        let Content::Text(source) = &first.changes[0].content else { panic!("unreadable") };
        assert!(
            reader
                .files
                .values()
                .all(|known| known.read.as_ref().is_ok_and(|kept| Arc::ptr_eq(kept, source)))
        );
    }

    #[test]
    fn a_stamp_is_trusted_only_when_the_file_was_quiet_as_it_was_read() {
        let folder = store(&[("a.yaml", "1")]);
        let name = OsString::from("a.yaml");
        let mut reader = DirReader::new(folder.path());
        let now = Moment::now();
        reader.read_all(now);
        assert!(reader.files[&name].stamp.is_none());
        reader.read_all(now + QUIET);
        assert!(reader.files[&name].stamp.is_some());
    }

    #[test]
    fn files_that_settled_are_read_without_a_look_at_the_others() {
        let folder = store(&[]);
        let mut reader = DirReader::new(folder.path());
        let now = Moment::now();
        reader.read_all(now);
        for name in ["a.yaml", "b.yaml"] {
            fs::write(folder.path().join(name), name).expect("file");
        }
        let closed = ["b.yaml".into(), "c.yaml".into()].into();
        assert_eq!(shown(&reader.read_files(&closed, true, now)), [pair("b.yaml", "b.yaml")]);
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
        let scan = DirReader::new(folder.path()).read_all(Moment::now());
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
        reader.read_all(Moment::now());
        let moved = folder.path().with_extension("moved");
        fs::rename(folder.path(), &moved).expect("move");
        let scan = reader.read_all(Moment::now());
        assert!(scan.changes.is_empty() && scan.problem.is_some());
        fs::rename(&moved, folder.path()).expect("move back");
        let scan = reader.read_all(Moment::now());
        assert!(scan.changes.is_empty() && scan.problem.is_none());
    }

    #[test]
    fn an_empty_directory_in_the_place_of_another_one_takes_nothing_away_and_the_same_one_does() {
        let folder = store(&[]);
        let path = folder.path().join("store");
        fs::create_dir(&path).expect("store");
        fs::write(path.join("a.yaml"), "1").expect("file");
        let mut reader = DirReader::new(&path);
        let now = Moment::now();
        reader.read_all(now);
        fs::rename(&path, folder.path().join("unmounted")).expect("away");
        fs::create_dir(&path).expect("what is below");
        let mut looks = vec![reader.read_all(now), surveyed(&mut reader, now)];
        looks.extend(
            [0, 1, 2].map(|times| reader.read_files(&["a.yaml".into()].into(), true, now + QUIET * times)),
        );
        assert!(looks.iter().all(|scan| scan.changes.is_empty()), "{looks:?}");
        assert!(
            reader.problem.as_ref().is_some_and(|why| why.contains("is it mounted?")),
            "{:?}",
            reader.problem
        );
        fs::write(path.join("b.yaml"), "2").expect("file");
        assert_eq!(shown(&reader.read_all(now)), [pair("b.yaml", "2"), pair("a.yaml", "-")]);
        fs::remove_file(path.join("b.yaml")).expect("delete");
        assert_eq!(shown(&reader.read_all(now)), [pair("b.yaml", "-")]);
        assert_eq!(reader.problem, None);
    }

    #[test]
    fn what_is_remembered_stays_until_a_directory_with_files_was_read() {
        let folder = store(&[]);
        let path = folder.path().join("store");
        let mut reader = DirReader::new(&path);
        for (name, text) in [("a.yaml", "1"), ("b.yaml", "2"), ("c.yaml", "3")] {
            reader.remember(OsStr::new(name), text.to_owned(), None);
        }
        let now = Moment::now();
        let scan = reader.read_all(now);
        assert!(scan.changes.is_empty() && scan.problem.is_some());
        fs::create_dir(&path).expect("store");
        let scan = reader.read_all(now);
        assert!(scan.changes.is_empty() && scan.problem.is_some_and(|why| why.contains("is empty")));
        fs::write(path.join("a.yaml"), "1").expect("file");
        fs::write(path.join("b.yaml"), "22").expect("file");
        // It may be being filled.
        let scan = reader.read_all(now);
        assert_eq!((shown(&scan), scan.again), (vec![pair("b.yaml", "22")], ["c.yaml".into()].into()));
        assert_eq!(shown(&surveyed(&mut reader, now + QUIET)), [pair("c.yaml", "-")]);
    }

    #[test]
    fn a_clock_that_jumps_makes_nothing_whole_and_nothing_gone() {
        let folder = store(&[("a.yaml", "1")]);
        let mut reader = DirReader::new(folder.path());
        let now = Moment::now();
        reader.read_all(now);
        let day = Duration::from_secs(86_400);
        fs::write(folder.path().join("a.yaml"), "half").expect("write");
        for wall in [now.wall, now.wall + day, now.wall - day] {
            assert!(surveyed(&mut reader, Moment { wall, ..now }).changes.is_empty());
        }
        fs::remove_file(folder.path().join("a.yaml")).expect("away");
        for wall in [now.wall, now.wall + day, now.wall - day] {
            assert!(surveyed(&mut reader, Moment { wall, ..now }).changes.is_empty());
        }
        assert_eq!(shown(&surveyed(&mut reader, now + QUIET)), [pair("a.yaml", "-")]);
    }

    #[test]
    fn a_directory_that_never_was_is_an_empty_store() {
        let scan = DirReader::new("/nonexistent/overlane").read_all(Moment::now());
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
        assert_eq!(shown(&reader.read_all(Moment::now())), [pair("a.yaml", "one")]);
        data("..2", "two");
        point("..2");
        assert_eq!(shown(&reader.read_all(Moment::now())), [pair("a.yaml", "two")]);
    }
}
