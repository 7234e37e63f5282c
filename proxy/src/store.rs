//! Stores: where blueprints are kept. Here a directory, one file per environment; and beside them what was last
//! read of one, for a start without it.

pub mod cache;
pub mod follow;
pub mod read;
pub mod watch;
pub mod write;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a store is: `dir:PATH`, or a bare path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreAddress(PathBuf);

impl StoreAddress {
    /// A directory as store.
    #[must_use]
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The same from everywhere on this machine, with its scheme.
    #[must_use]
    pub fn absolute(&self) -> String {
        let path = std::path::absolute(&self.0).unwrap_or_else(|_| self.0.clone());
        format!("dir:{}", path.display())
    }
}

impl FromStr for StoreAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = match text.split_once(':') {
            Some(("dir", path)) => path,
            Some((scheme, _)) if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Err(format!("`{scheme}:` stores are not in this build; write `dir:PATH` or a path"));
            }
            _ => text,
        };
        if path.is_empty() { Err("an empty path".to_owned()) } else { Ok(Self(path.into())) }
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_path_with_or_without_scheme() {
        for text in ["./environments", "dir:./environments"] {
            assert_eq!(text.parse::<StoreAddress>().expect(text).to_string(), "./environments");
        }
        assert!("etcd:127.0.0.1".parse::<StoreAddress>().expect_err("scheme").contains("etcd"));
        assert!("dir:".parse::<StoreAddress>().is_err());
    }
}
