//! Keys of tokens, as files have them: JSON Web Keys (RFC 7517), one or a set.

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ring::{digest, error::Unspecified};
use serde::{Deserialize, Serialize};

use crate::settings::{SettingsError, error};

/// The shortest secret, in bytes (RFC 7518, section 3.2).
const SHORTEST_SECRET: usize = 32;
const SEED: usize = 32;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ed25519: who verifies cannot sign.
    Ed25519,
    /// HMAC-SHA256: one secret signs and verifies.
    Hmac,
}

/// A key that verifies tokens.
pub(super) struct Key {
    /// Its name in tokens (`kid`).
    pub(super) id: Box<str>,
    /// The only algorithm that it is for.
    pub(super) algorithm: Algorithm,
    pub(super) verifies: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// A key that signs tokens.
pub struct SigningKey {
    /// Its name in tokens (`kid`).
    pub id: Box<str>,
    pub(super) algorithm: Algorithm,
    pub(super) signs: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A new key, as its files have it.
pub struct MadeKey {
    /// Its name in tokens (`kid`).
    pub id: String,
    /// What signs: a secret.
    pub private: String,
    /// What only verifies, where there is such a thing.
    pub public: Option<String>,
}

/// A JSON Web Key of one of our kinds.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Jwk {
    kty: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<String>,
}

/// A file of keys.
#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    Set { keys: Vec<Jwk> },
    One(Jwk),
}

/// The keys in a file, of which it may be a set without any.
///
/// # Errors
/// What is wrong, and what to write.
pub(super) fn keys(path: &Path, json: &[u8]) -> Result<Vec<Key>, SettingsError> {
    jwks(path, json)?.iter().map(|jwk| jwk.key().map_err(|wrong| at(path, &wrong))).collect()
}

/// The key in a file with which tokens are signed.
///
/// # Errors
/// What is wrong, and what to write.
pub fn signing_key(path: &Path) -> Result<SigningKey, SettingsError> {
    let json = std::fs::read(path).map_err(|why| {
        error(
            format!("cannot read the key {}: {why}", path.display()),
            "`overlane token key --out FILE` makes one",
        )
    })?;
    let jwks = jwks(path, &json)?;
    let [jwk] = &jwks[..] else {
        let what = format!("{} has {} keys", path.display(), jwks.len());
        return Err(error(what, "give a file with the one key that signs"));
    };
    jwk.signing_key().map_err(|wrong| at(path, &wrong))
}

/// What is wrong with a key, and what to do.
type Wrong = (String, &'static str);

fn at(path: &Path, (what, hint): &Wrong) -> SettingsError {
    error(format!("the key {}: {what}", path.display()), *hint)
}

fn jwks(path: &Path, json: &[u8]) -> Result<Vec<Jwk>, SettingsError> {
    match serde_json::from_slice(json) {
        Ok(File::Set { keys }) => Ok(keys),
        Ok(File::One(jwk)) => Ok(vec![jwk]),
        // Nothing of the file is said: it may be a secret.
        Err(_) => Err(error(
            format!("{} is no JSON Web Key, and no set of them", path.display()),
            "`overlane token key --out FILE` makes one; it looks like {\"kty\":\"OKP\",\"crv\":\"Ed25519\",…}",
        )),
    }
}

impl Jwk {
    fn kind(&self) -> Result<Kind, Wrong> {
        let (kind, alg) = match (&*self.kty, self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => (Kind::Ed25519, "EdDSA"),
            ("oct", _) => (Kind::Hmac, "HS256"),
            _ => {
                return Err((
                    "it is neither of Ed25519 nor a secret for HMAC".to_owned(),
                    "`overlane token key` makes such keys",
                ));
            }
        };
        // A key is for one algorithm only (RFC 8725, section 3.1).
        match self.alg.as_deref() {
            None => Ok(kind),
            Some(told) if told == alg || (kind == Kind::Ed25519 && told == "Ed25519") => Ok(kind),
            Some(_) => {
                Err((format!("its `alg` is another one than {alg}"), "leave `alg` out, or take another key"))
            }
        }
    }

    fn id(&self, kind: Kind) -> Result<Box<str>, Wrong> {
        match (&self.kid, kind) {
            (Some(id), _) if !id.is_empty() && id.len() <= 256 => Ok((&**id).into()),
            (Some(_), _) => {
                Err(("its `kid` is empty, or longer than 256 bytes".to_owned(), "give it a short name"))
            }
            (None, Kind::Ed25519) => Ok(self.thumbprint().into()),
            // A thumbprint would be a hash of the secret.
            (None, Kind::Hmac) => {
                Err(("a secret without a `kid`".to_owned(), "give it a name: `\"kid\": \"ci-2026\"`"))
            }
        }
    }

    /// RFC 7638.
    fn thumbprint(&self) -> String {
        let x = self.x.as_deref().unwrap_or_default();
        let canonical = format!("{{\"crv\":\"Ed25519\",\"kty\":\"OKP\",\"x\":\"{x}\"}}");
        BASE64.encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
    }

    fn key(&self) -> Result<Key, Wrong> {
        let kind = self.kind()?;
        let id = self.id(kind)?;
        match kind {
            Kind::Ed25519 => {
                let public = bytes("x", self.x.as_deref())?;
                if public.len() != SEED {
                    return Err(("its `x` has not 32 bytes".to_owned(), "it is the public key (RFC 8037)"));
                }
                Ok(Key { id, algorithm: Algorithm::EdDSA, verifies: DecodingKey::from_ed_der(&public) })
            }
            Kind::Hmac => {
                let verifies = DecodingKey::from_secret(&self.secret()?).map_err(|_| short())?;
                Ok(Key { id, algorithm: Algorithm::HS256, verifies })
            }
        }
    }

    fn signing_key(&self) -> Result<SigningKey, Wrong> {
        let kind = self.kind()?;
        let id = self.id(kind)?;
        match kind {
            Kind::Ed25519 if self.d.is_none() => Err((
                "it is a public key: it only verifies".to_owned(),
                "sign with the private one, and give this one to gateways",
            )),
            Kind::Ed25519 => {
                let seed = bytes("d", self.d.as_deref())?;
                let public = bytes("x", self.x.as_deref())?;
                Ed25519KeyPair::from_seed_and_public_key(&seed, &public)
                    .map_err(|_| ("its `d` and `x` are no pair of keys".to_owned(), "make it anew"))?;
                Ok(SigningKey { id, algorithm: Algorithm::EdDSA, signs: EncodingKey::from_ed_der(&seed) })
            }
            Kind::Hmac => {
                let signs = EncodingKey::from_secret(&self.secret()?).map_err(|_| short())?;
                Ok(SigningKey { id, algorithm: Algorithm::HS256, signs })
            }
        }
    }

    fn secret(&self) -> Result<Vec<u8>, Wrong> {
        let secret = bytes("k", self.k.as_deref())?;
        if secret.len() < SHORTEST_SECRET { Err(short()) } else { Ok(secret) }
    }
}

fn short() -> Wrong {
    (
        format!("its secret is shorter than {SHORTEST_SECRET} bytes"),
        "who sees one token can guess it: make a new one",
    )
}

fn bytes(member: &str, text: Option<&str>) -> Result<Vec<u8>, Wrong> {
    let hint = "base64url without padding (RFC 7515, section 2)";
    let text = text.ok_or_else(|| (format!("it has no `{member}`"), hint))?;
    BASE64.decode(text).map_err(|_| (format!("its `{member}` is no base64url"), hint))
}

/// Makes a key.
///
/// # Errors
/// The system has no random numbers.
pub fn make(kind: Kind) -> Result<MadeKey, Unspecified> {
    let mut secret = [0; SEED];
    SystemRandom::new().fill(&mut secret)?;
    let encoded = Some(BASE64.encode(secret));
    let usage = Some("sig".to_owned());
    let (jwk, public) = match kind {
        Kind::Hmac => {
            let mut id = [0; 9];
            SystemRandom::new().fill(&mut id)?;
            let (kty, alg) = ("oct".to_owned(), Some("HS256".to_owned()));
            (Jwk { kty, alg, usage, kid: Some(BASE64.encode(id)), k: encoded, ..Jwk::default() }, None)
        }
        Kind::Ed25519 => {
            let pair = Ed25519KeyPair::from_seed_unchecked(&secret).map_err(|_| Unspecified)?;
            let (kty, crv, alg) = ("OKP".to_owned(), Some("Ed25519".to_owned()), Some("EdDSA".to_owned()));
            let x = Some(BASE64.encode(pair.public_key()));
            let mut public = Jwk { kty, crv, alg, usage, x, ..Jwk::default() };
            public.kid = Some(public.thumbprint());
            (Jwk { d: encoded, ..public.clone() }, Some(public))
        }
    };
    Ok(MadeKey {
        id: jwk.kid.clone().unwrap_or_default(),
        private: written(&jwk),
        public: public.as_ref().map(written),
    })
}

fn written(jwk: &Jwk) -> String {
    // A structure of texts can always be written.
    serde_json::to_string(jwk).unwrap_or_default() + "\n"
}
