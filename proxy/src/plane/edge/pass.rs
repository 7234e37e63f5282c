//! Secrets that let in whoever has them.

use overlane_config::blueprint::{Share, hex};
use overlane_config::time::UnixMillis;
use ring::digest::{SHA256, digest as hash};
use ring::rand::{SecureRandom, SystemRandom};

/// How many random bytes a secret has: guessing one of many takes longer than anybody has.
const BYTES: usize = 20;

/// A secret that was made just now. It is not kept anywhere but in the link that is given away.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Makes one; `None` where the system has no randomness to give.
    #[must_use]
    pub fn new() -> Option<Self> {
        let mut bytes = [0; BYTES];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(Self(hex(&bytes)))
    }

    /// The secret, to be given away.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Never shown.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What is kept of a secret: its SHA-256.
#[must_use]
pub fn digest(secret: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(hash(&SHA256, secret.as_bytes()).as_ref());
    digest
}

/// Whether a secret is one of those that were shared, and still counts.
pub(super) fn opens(shares: &[Share], secret: &str, now: UnixMillis) -> bool {
    let own = digest(secret);
    shares.iter().any(|share| share.hash == own && share.expires_at.is_none_or(|at| at > now))
}
