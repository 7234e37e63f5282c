//! The keys of tokens as they are in force: the last good of every file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};

use super::Keyring;
use super::jwk::{self, Key};
use crate::settings::{SettingsError, error};
use crate::tls::credentials::Kept;
use crate::tls::follow::Followed;

/// Which tokens are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// Where the keys are that verify them.
    pub keys: Vec<PathBuf>,
    /// The audience that they have to name.
    pub audience: String,
}

struct State {
    /// In the order of the settings.
    kept: Vec<Kept<Vec<Arc<Key>>>>,
    failures: u64,
}

/// The keys in force. Requests only load a pointer; everything else is the control side's.
pub struct Tokens {
    settings: TokenSettings,
    keyring: ArcSwap<Keyring>,
    /// Never held while a file is read.
    state: Mutex<State>,
    /// Held by who reads files, so that nobody brings older ones into force.
    looking: Mutex<()>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The keys in files, for whoever only looks at a token.
///
/// # Errors
/// One of them is of no use, or two keys have one name.
pub fn keyring(paths: &[PathBuf], audience: Option<&str>) -> Result<Keyring, SettingsError> {
    let mut keys = Vec::new();
    for path in paths {
        keys.extend(parse(path, &Some(read_there(path)?))?);
    }
    check_names(&keys)?;
    Ok(Keyring::new(keys, audience, 1))
}

impl Tokens {
    /// Reads all files.
    ///
    /// # Errors
    /// One of them is not there or of no use, or two keys have one name.
    pub fn load(settings: &TokenSettings) -> Result<Self, SettingsError> {
        let first = |path: &PathBuf| Kept::new(&Some(read_there(path)?), |file| parse(path, file));
        let kept = settings.keys.iter().map(first).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<_> = kept.iter().flat_map(|kept| kept.good.iter().cloned()).collect();
        check_names(&keys)?;
        let keyring = Keyring::new(keys, Some(&settings.audience), 1);
        Ok(Self {
            settings: settings.clone(),
            keyring: ArcSwap::from_pointee(keyring),
            state: Mutex::new(State { kept, failures: 0 }),
            looking: Mutex::default(),
        })
    }

    /// What a request's token is verified by.
    #[must_use]
    pub fn keyring(&self) -> Guard<Arc<Keyring>> {
        self.keyring.load()
    }

    /// How often files were of no use after the start.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followed for Tokens {
    fn files(&self) -> Vec<PathBuf> {
        self.settings.keys.clone()
    }

    fn problems(&self) -> Vec<String> {
        self.state().kept.iter().filter_map(|kept| kept.problem.clone()).collect()
    }

    /// Each file that is of use comes into force, and the keys of one that is not there any more are gone: whoever
    /// takes a key away means it. What is wrong with another one is logged when it is new.
    fn look(&self) {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let read: Vec<_> = self.settings.keys.iter().map(|path| read(path)).collect();
        let State { kept, failures } = &mut *self.state();
        let mut renewed = Vec::new();
        for ((path, kept), read) in self.settings.keys.iter().zip(&mut *kept).zip(read) {
            let gone = matches!(read, Ok(None));
            if kept.renew(read, |file| parse(path, file), failures) {
                renewed.push((path.display(), kept.good.len()));
            }
            if gone {
                kept.problem =
                    Some(format!("the key {} is gone, and so is what its tokens gave", path.display()));
            }
        }
        if renewed.is_empty() {
            return;
        }
        let keys = kept.iter().flat_map(|kept| kept.good.iter().cloned());
        let generation = self.keyring.load().generation + 1;
        self.keyring.store(Arc::new(Keyring::new(keys, Some(&self.settings.audience), generation)));
        for (path, keys) in renewed {
            match keys {
                0 => {
                    tracing::warn!(%path, "no keys of tokens are left there: what they signed gives no right");
                }
                _ => tracing::info!(%path, keys, "new keys of tokens are in force"),
            }
        }
    }
}

/// A file that has to be there.
fn read_there(path: &Path) -> Result<Vec<u8>, SettingsError> {
    read(path)?.ok_or_else(|| {
        error(
            format!("there is no key {}", path.display()),
            "`overlane token key --out FILE` makes one, and FILE.pub for those who verify",
        )
    })
}

/// `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, SettingsError> {
    match std::fs::read(path) {
        Ok(file) => Ok(Some(file)),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(error(
            format!("cannot read the key {}: {why}", path.display()),
            "check its path and permissions",
        )),
    }
}

fn parse(path: &Path, file: &Option<Vec<u8>>) -> Result<Vec<Arc<Key>>, SettingsError> {
    let keys = file.as_ref().map(|file| jwk::keys(path, file)).transpose()?;
    Ok(keys.unwrap_or_default().into_iter().map(Arc::new).collect())
}

fn check_names(keys: &[Arc<Key>]) -> Result<(), SettingsError> {
    let twice = keys.iter().enumerate().find(|(at, key)| keys[..*at].iter().any(|other| other.id == key.id));
    match twice {
        None => Ok(()),
        Some((_, key)) => Err(error(
            format!("two keys of tokens have the name `{}`", overlane_config::name::printable(&key.id, 80)),
            "name each file once, and give each key a `kid` of its own",
        )),
    }
}
