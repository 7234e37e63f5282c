//! Stores: where blueprints are kept. A directory, one file per environment, or an engine that several machines
//! share; and beside them what was last read of one, for a start without it.

pub mod behind;
pub mod cache;
pub mod directory;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod hub;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod mirror;
pub mod open;
pub mod shared;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

#[cfg(feature = "etcd")]
use etcd::{Etcd, EtcdAddress};
use hub::{Access, HubAddress, HubStore};
#[cfg(feature = "kubernetes")]
use kubernetes::{Kubernetes, KubernetesAddress};
use shared::{Fault, Shared};

/// Where a store is: `dir:PATH` or a bare path, `etcd:ENDPOINTS[/prefix]`, `kubernetes:[NAMESPACE]`, or `hub:URL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// A directory.
    Directory(PathBuf),
    /// Keys of an etcd.
    #[cfg(feature = "etcd")]
    Etcd(EtcdAddress),
    /// Custom resources of a Kubernetes cluster.
    #[cfg(feature = "kubernetes")]
    Kubernetes(KubernetesAddress),
    /// Another Overlane that serves its store.
    Hub(HubAddress),
}

/// A store that can be asked.
pub enum Reached<'a> {
    /// A directory.
    Directory(&'a Path),
    /// What several machines share.
    Shared(Arc<dyn Shared>),
}

impl StoreAddress {
    /// A directory as store.
    #[must_use]
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory(path.into())
    }

    /// What can be asked; it is not asked yet.
    ///
    /// # Errors
    /// What it takes to ask is not there, such as a certificate.
    pub fn reach(&self) -> Result<Reached<'_>, Fault> {
        match self {
            Self::Directory(path) => Ok(Reached::Directory(path)),
            #[cfg(feature = "etcd")]
            Self::Etcd(address) => {
                Ok(Reached::Shared(Arc::new(Etcd::new(address, etcd::Access::from_environment()?)?)))
            }
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(address) => Ok(Reached::Shared(Arc::new(Kubernetes::new(address)?))),
            Self::Hub(address) => Ok(Reached::Shared(Arc::new(HubStore::new(address.clone())))),
        }
    }

    /// Where it is a hub: which one.
    #[must_use]
    pub fn hub(&self) -> Option<&HubAddress> {
        match self {
            Self::Hub(address) => Some(address),
            _ => None,
        }
    }

    /// Whether an engine keeps it, and nobody's files or another process do.
    #[must_use]
    pub fn is_kept_by_an_engine(&self) -> bool {
        !matches!(self, Self::Directory(_) | Self::Hub(_))
    }

    /// The same, spoken to so where it is a hub.
    #[must_use]
    pub fn with_access(self, access: &Access) -> Self {
        match self {
            Self::Hub(mut hub) => {
                hub.access = access.clone();
                Self::Hub(hub)
            }
            other => other,
        }
    }

    /// The same from everywhere on this machine, with its scheme.
    #[must_use]
    pub fn absolute(&self) -> String {
        match self {
            Self::Directory(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("dir:{}", path.display())
            }
            #[cfg(feature = "etcd")]
            Self::Etcd(address) => address.to_string(),
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(address) => address.resolved(),
            Self::Hub(_) => self.to_string(),
        }
    }
}

impl FromStr for StoreAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = match text.split_once(':') {
            Some(("dir", path)) => path,
            #[cfg(feature = "etcd")]
            Some(("etcd", address)) => return Ok(Self::Etcd(address.parse()?)),
            #[cfg(feature = "kubernetes")]
            Some(("kubernetes", address)) => return Ok(Self::Kubernetes(address.parse()?)),
            Some(("hub", address)) => return address.parse().map(Self::Hub),
            // Features of this crate, each called as its scheme.
            #[cfg(not(all(feature = "etcd", feature = "kubernetes")))]
            Some((scheme @ ("etcd" | "kubernetes"), _)) => {
                return Err(format!(
                    "`{scheme}:` stores were left out of this build: take one that was released, or build with \
                     `--features {scheme}`"
                ));
            }
            Some((scheme, _)) if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Err(format!(
                    "there are no `{scheme}:` stores; write `dir:PATH`, a path, `etcd:ENDPOINTS`, \
                     `kubernetes:NAMESPACE` or `hub:URL`"
                ));
            }
            _ => text,
        };
        if path.is_empty() { Err("an empty path".to_owned()) } else { Ok(Self::Directory(path.into())) }
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            #[cfg(feature = "etcd")]
            Self::Etcd(address) => address.fmt(f),
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(address) => address.fmt(f),
            Self::Hub(address) => write!(f, "hub:{address}"),
        }
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
        assert!("redis:127.0.0.1".parse::<StoreAddress>().expect_err("scheme").contains("redis"));
        assert!("dir:".parse::<StoreAddress>().is_err());
    }

    #[test]
    fn a_store_that_was_left_out_of_the_build_says_how_to_get_one() {
        for (scheme, is_there) in
            [("etcd", cfg!(feature = "etcd")), ("kubernetes", cfg!(feature = "kubernetes"))]
        {
            match format!("{scheme}:team").parse::<StoreAddress>() {
                Ok(_) => assert!(is_there, "{scheme}"),
                Err(why) => assert!(!is_there && why.contains(&format!("--features {scheme}")), "{why}"),
            }
        }
    }
}
