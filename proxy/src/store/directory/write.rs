//! Writing to a directory: whole files only, one writer at a time.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use overlane_config::lineage::FileChange;

use super::read::DirReader;
use crate::clock::Moment;

/// The lock that writers hold; its name is none of a blueprint.
const LOCK: &str = ".overlane.lock";

/// What the system says, about a path.
pub type At = (PathBuf, io::Error);

fn at(path: &Path) -> impl FnOnce(io::Error) -> At {
    let path = path.to_owned();
    move |error| (path, error)
}

/// A directory that is written to, or only read once.
pub struct Directory {
    path: PathBuf,
    reader: DirReader,
    /// Held until the store is closed, or [left](Directory::leave) for now.
    lock: Option<File>,
}

impl Directory {
    /// A directory that is only read.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        Self { path: path.to_owned(), reader: DirReader::new(path), lock: None }
    }

    /// Makes the directory where it is not there, and takes the writers' lock.
    ///
    /// # Errors
    /// The directory cannot be made or locked.
    pub fn lock(path: &Path) -> Result<Self, At> {
        let mut directory = Self::read(path);
        directory.enter()?;
        Ok(directory)
    }

    /// Takes the writers' lock.
    ///
    /// # Errors
    /// See [`Directory::lock`].
    pub fn enter(&mut self) -> Result<(), At> {
        fs::create_dir_all(&self.path).map_err(at(&self.path))?;
        let name = self.path.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&name).map_err(at(&name))?;
        lock.lock().map_err(at(&name))?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Lets others write.
    pub fn leave(&mut self) {
        self.lock = None;
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All that is in it; nothing where it is not there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn list(&mut self) -> Result<Vec<FileChange>, At> {
        self.reader = DirReader::new(&self.path);
        self.changes()
    }

    /// What is different from when it was last asked: only that is read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn changes(&mut self) -> Result<Vec<FileChange>, At> {
        let scan = self.reader.read_all(Moment::now());
        match scan.problem {
            Some(problem) => Err((self.path.clone(), io::Error::other(problem))),
            None => Ok(scan.changes),
        }
    }

    /// Writes a file, or takes it away where `text` is `None`. A reader sees the old file or the new one, and so
    /// does a machine that lost power.
    ///
    /// # Errors
    /// What the system says; the file is as it was.
    pub fn put(&self, name: &str, text: Option<&str>) -> Result<(), At> {
        let path = self.path.join(name);
        match text {
            Some(text) => self.write_file(&path, text.as_bytes())?,
            None => fs::remove_file(&path).map_err(at(&path))?,
        }
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(at(&self.path))
    }

    /// Writes beside, syncs, renames.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), At> {
        let mut beside =
            tempfile::Builder::new().prefix(".overlane-").tempfile_in(&self.path).map_err(at(path))?;
        let mode = fs::metadata(path)
            .map(|metadata| metadata.permissions())
            .unwrap_or_else(|_| std::os::unix::fs::PermissionsExt::from_mode(0o644));
        beside.as_file().set_permissions(mode).map_err(at(path))?;
        beside.write_all(bytes).and_then(|()| beside.as_file().sync_all()).map_err(at(path))?;
        beside.persist(path).map_err(|error| (path.to_owned(), error.error))?;
        Ok(())
    }
}
