//! Overlay tokens: signed statements of which overlays their bearer may choose, where, and until when.
//!
//! A token is a JWT (RFC 7519) with the type `overlay+jwt` (RFC 8725, section 3.11). Which key it names decides by
//! which algorithm it is verified: nothing else that a token says of its own verification is heard.

mod jwk;
pub mod keys;
mod signatures;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation, dangerous, decode, decode_header, encode};
use overlane_config::name::EnvironmentId;
use serde::{Deserialize, Serialize};

use jwk::Key;
pub use jwk::{Kind, MadeKey, SigningKey, make, signing_key};

/// The type of our tokens.
pub const TYPE: &str = "overlay+jwt";
/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whom it is for.
    pub aud: Audience,
    /// Until when, in seconds since 1970.
    pub exp: u64,
    /// Since when, if not since ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// When it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// What its bearer may choose.
    pub overlays: Overlays,
}

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Any of several.
    Several(Vec<String>),
}

/// Which overlays a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Overlays {
    /// All of them: `"*"`.
    Any,
    /// These, at least one.
    These(Vec<EnvironmentId>),
}

/// How [`Overlays`] are written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Star(String),
    List(Vec<String>),
}

impl TryFrom<Written> for Overlays {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Star(star) if star == "*" => Ok(Self::Any),
            Written::Star(_) => Err("`overlays` is \"*\" or a list of ids".to_owned()),
            Written::List(ids) if ids.is_empty() => Err("`overlays` is empty".to_owned()),
            Written::List(ids) => {
                let id = |id: String| id.parse().map_err(|why| format!("`overlays`: {why}"));
                ids.into_iter().map(id).collect::<Result<_, _>>().map(Self::These)
            }
        }
    }
}

impl From<Overlays> for Written {
    fn from(overlays: Overlays) -> Self {
        match overlays {
            Overlays::Any => Self::Star("*".to_owned()),
            Overlays::These(ids) => Self::List(ids.iter().map(ToString::to_string).collect()),
        }
    }
}

/// Why a token gives no right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is for another audience, or for none.
    Audience,
    /// Its time is over.
    Expired,
    /// It is verified by no key that is known here.
    Key,
    /// It is no token, or says what no token says.
    Malformed,
    /// Its time has not come.
    NotYetValid,
    /// The request carries several.
    Several,
    /// Its signature is not of that key, or by another algorithm than that key's.
    Signature,
    /// It is of another type.
    Type,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Audience,
        Self::Expired,
        Self::Key,
        Self::Malformed,
        Self::NotYetValid,
        Self::Several,
        Self::Signature,
        Self::Type,
    ];

    /// The word for it in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::Key => "key",
            Self::Malformed => "malformed",
            Self::NotYetValid => "not-yet-valid",
            Self::Several => "several",
            Self::Signature => "signature",
            Self::Type => "type",
        }
    }

    /// What is the matter, as a sentence about the token goes on.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Audience => "is for another audience",
            Self::Expired => "has expired",
            Self::Key => "names no key that is known here",
            Self::Malformed => "is malformed",
            Self::NotYetValid => "is not valid yet",
            Self::Several => "is not the only one",
            Self::Signature => "has a signature that is not of its key",
            Self::Type => "is not of the type overlay+jwt",
        }
    }

    fn of(error: &jsonwebtoken::errors::Error) -> Self {
        match error.kind() {
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::NotYetValid,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Self::Audience,
            ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => Self::Signature,
            _ => Self::Malformed,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// The keys by which tokens for an audience are verified.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: HashMap<Box<str>, (Arc<Key>, Validation)>,
    /// Grows with each change of keys.
    pub generation: u64,
}

impl Keyring {
    /// A keyring for tokens that `audience` names; without one, the audience is not looked at.
    fn new(keys: impl IntoIterator<Item = Arc<Key>>, audience: Option<&str>, generation: u64) -> Self {
        signatures::install();
        let with_rules = |key: Arc<Key>| {
            let mut rules = Validation::new(key.algorithm);
            rules.leeway = 0;
            rules.validate_nbf = true;
            rules.validate_aud = audience.is_some();
            match audience {
                Some(audience) => {
                    rules.set_audience(&[audience]);
                    rules.set_required_spec_claims(&["exp", "aud"]);
                }
                None => rules.set_required_spec_claims(&["exp"]),
            }
            (key.id.clone(), (key, rules))
        };
        Self { keys: keys.into_iter().map(with_rules).collect(), generation }
    }

    /// What a token says, if it is signed by one of the keys, for this audience, and at this time.
    ///
    /// # Errors
    /// Why it gives no right.
    pub fn verify(&self, token: &[u8]) -> Result<Claims, Refused> {
        let header = header(token)?;
        let key = header.kid.as_deref().and_then(|id| self.keys.get(id));
        let (key, rules) = key.ok_or(Refused::Key)?;
        decode(token, &key.verifies, rules).map(|token| token.claims).map_err(|error| Refused::of(&error))
    }
}

/// The header of a token of ours.
fn header(token: &[u8]) -> Result<Header, Refused> {
    if token.len() > MAX_TOKEN {
        return Err(Refused::Malformed);
    }
    let header = decode_header(token).map_err(|_| Refused::Malformed)?;
    let typ = header.typ.as_deref().unwrap_or_default();
    let short = typ.get(.."application/".len()).filter(|start| start.eq_ignore_ascii_case("application/"));
    let typ = short.map_or(typ, |start| &typ[start.len()..]);
    if typ.eq_ignore_ascii_case(TYPE) { Ok(header) } else { Err(Refused::Type) }
}

/// What a token says, and of which key it says to be: nothing of that is verified.
///
/// # Errors
/// It is none of ours.
pub fn read_unverified(token: &str) -> Result<(Option<String>, Claims), Refused> {
    let header = header(token.as_bytes())?;
    let said = dangerous::insecure_decode_claims(token).map_err(|_| Refused::Malformed)?;
    Ok((header.kid, said))
}

/// Signs a token.
///
/// # Errors
/// What the library says.
pub fn issue(claims: &Claims, key: &SigningKey) -> Result<String, String> {
    signatures::install();
    let mut header = Header::new(key.algorithm);
    header.typ = Some(TYPE.to_owned());
    header.kid = Some(key.id.to_string());
    encode(&header, claims, &key.signs).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
