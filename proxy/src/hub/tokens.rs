//! Who may read from a hub and write to it: whoever shows a token that is in a file. The files may change meanwhile.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::admin::same;
use crate::settings::{SettingsError, error};
use crate::tls::follow::Followed;

/// Shorter ones can be guessed, in characters.
const SHORTEST: usize = 16;

/// What somebody may do.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Nothing
    #[default]
    None,
    /// Follow and list
    Read,
    /// Write as well
    Write,
}

/// A hub as the settings have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// Where it listens.
    pub address: SocketAddr,
    /// The file with the tokens of those who may write, one on a line.
    pub tokens: Option<PathBuf>,
    /// The same of those who may only read.
    pub read_tokens: Option<PathBuf>,
    /// What may be done without a token.
    pub open: Right,
}

impl HubSettings {
    /// Whether anybody may write here.
    #[must_use]
    pub fn is_written_to(&self) -> bool {
        self.tokens.is_some() || self.open == Right::Write
    }

    /// Checks them: whoever can reach it from another machine needs a token, unless somebody said otherwise.
    ///
    /// # Errors
    /// Nobody said who may do what.
    pub fn checked(
        address: SocketAddr,
        tokens: Option<PathBuf>,
        read_tokens: Option<PathBuf>,
        open: Option<Right>,
    ) -> Result<Self, SettingsError> {
        let none = tokens.is_none() && read_tokens.is_none();
        let open = match open {
            Some(open) => open,
            None if !none => Right::None,
            None if address.ip().is_loopback() => Right::Write,
            None => {
                return Err(error(
                    format!("the hub at {address} can be reached from other machines and has no token"),
                    "give `--hub-tokens FILE`, or say what everybody may do with `--hub-open read`",
                ));
            }
        };
        Ok(Self { address, tokens, read_tokens, open })
    }
}

#[derive(Debug, Default)]
struct Known {
    write: Vec<String>,
    read: Vec<String>,
}

/// The tokens in force.
#[derive(Debug)]
pub struct HubTokens {
    settings: HubSettings,
    known: ArcSwap<Known>,
    /// Told when others are in force.
    changed: watch::Sender<()>,
    problem: Mutex<Option<String>>,
}

impl HubTokens {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them is of no use: which, and what to do.
    pub fn load(settings: HubSettings) -> Result<Self, SettingsError> {
        let known = ArcSwap::from_pointee(read_all(&settings)?);
        Ok(Self { settings, known, changed: watch::Sender::new(()), problem: Mutex::default() })
    }

    /// What may be done without a token.
    #[must_use]
    pub fn open(&self) -> Right {
        self.settings.open
    }

    /// Whether only this machine can reach the hub.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.settings.address.ip().is_loopback()
    }

    /// What who shows this may do.
    #[must_use]
    pub fn right(&self, shown: &[u8]) -> Right {
        let known = self.known.load();
        let is_one =
            |tokens: &[String]| tokens.iter().fold(false, |is, token| is | same(token.as_bytes(), shown));
        let of_token = match (is_one(&known.write), is_one(&known.read)) {
            (true, _) => Right::Write,
            (false, true) => Right::Read,
            (false, false) => Right::None,
        };
        of_token.max(self.settings.open)
    }

    /// Waits until who shows this may not do that any more.
    pub async fn withdrawn(&self, shown: &[u8], wanted: Right) {
        let mut changed = self.changed.subscribe();
        while self.right(shown) >= wanted {
            // Its sender is here.
            let _ = changed.changed().await;
        }
    }
}

impl Followed for HubTokens {
    fn problems(&self) -> Vec<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        [&self.settings.tokens, &self.settings.read_tokens].into_iter().flatten().cloned().collect()
    }

    fn look(&self) {
        let read = read_all(&self.settings);
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(known) => {
                self.known.store(Arc::new(known));
                self.changed.send_replace(());
                *problem = None;
            }
            Err(SettingsError { message, hint }) => {
                if problem.as_ref() != Some(&message) {
                    tracing::warn!(hint, "{message}; what was last good stays in force");
                }
                *problem = Some(message);
            }
        }
    }
}

fn read_all(settings: &HubSettings) -> Result<Known, SettingsError> {
    let read = |file: &Option<PathBuf>| file.as_deref().map_or(Ok(Vec::new()), read);
    Ok(Known { write: read(&settings.tokens)?, read: read(&settings.read_tokens)? })
}

fn read(path: &Path) -> Result<Vec<String>, SettingsError> {
    let at = path.display();
    let text = std::fs::read_to_string(path).map_err(|why| {
        error(format!("cannot read the tokens {at}: {why}"), "check its path and permissions")
    })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let tokens: Vec<_> = lines.map(str::to_owned).collect();
    let hint = "write one on a line; `openssl rand -hex 32` makes one";
    match tokens.iter().map(String::len).min() {
        None => Err(error(format!("there is no token in {at}"), hint)),
        Some(shortest) if shortest < SHORTEST => {
            Err(error(format!("a token in {at} has {shortest} characters, fewer than {SHORTEST}"), hint))
        }
        Some(_) => Ok(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    fn settings(tokens: &str, read: &str, folder: &Path) -> HubSettings {
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("file");
            Some(path)
        };
        HubSettings::checked(LOCAL, put("write", tokens), put("read", read), None).expect("settings")
    }

    #[test]
    fn who_has_a_token_may_do_what_its_file_is_for_and_files_may_change() {
        let folder = tempfile::tempdir().expect("folder");
        let settings = settings(
            "# ours\nwrite-0123456789abc\n\nold-0123456789abcde\n",
            "read-0123456789abcdef",
            folder.path(),
        );
        let tokens = HubTokens::load(settings).expect("tokens");
        let right = |shown: &str| tokens.right(shown.as_bytes());
        assert_eq!(right("write-0123456789abc"), Right::Write);
        assert_eq!(right("old-0123456789abcde"), Right::Write);
        assert_eq!(right("read-0123456789abcdef"), Right::Read);
        assert_eq!(["", "# ours", "write-0123456789ab", "write"].map(right), [Right::None; 4]);
        std::fs::write(folder.path().join("write"), "write-0123456789abc").expect("file");
        tokens.look();
        assert_eq!((right("old-0123456789abcde"), right("write-0123456789abc")), (Right::None, Right::Write));
        std::fs::write(folder.path().join("write"), "short").expect("file");
        tokens.look();
        assert!(tokens.problems()[0].contains("fewer than 16"));
        assert_eq!(right("write-0123456789abc"), Right::Write);
    }

    #[test]
    fn who_can_be_reached_from_other_machines_says_who_may_do_what() {
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 1));
        let checked = |address, tokens: Option<&str>, open| {
            HubSettings::checked(address, tokens.map(PathBuf::from), None, open).map(|settings| settings.open)
        };
        assert_eq!(checked(LOCAL, None, None), Ok(Right::Write));
        assert_eq!(checked(LOCAL, Some("file"), None), Ok(Right::None));
        assert_eq!(checked(everywhere, Some("file"), None), Ok(Right::None));
        assert_eq!(checked(everywhere, None, Some(Right::Read)), Ok(Right::Read));
        assert!(checked(everywhere, None, None).expect_err("open").message.contains("no token"));
    }
}
