//! The overlay token of a request: found, verified, and remembered by each worker.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use foldhash::fast::RandomState;
use memchr::memmem;
use overlane_config::name::{EnvironmentId, TOKEN_HEADER};

use super::standing::Right;
use crate::clock;
use crate::h1::Name;
use crate::h1::request::Head;
use crate::metrics::count_refused_token;
use crate::tokens::keys::Tokens;
use crate::tokens::{Claims, Overlays, Refused, TYPE};

/// Where a request carries its token.
pub const TOKEN: Name<'_> = Name::of(TOKEN_HEADER);
/// The other place, as OAuth has it (RFC 6750).
pub const AUTHORIZATION: Name<'_> = Name::of("authorization");

/// How many verified tokens a worker remembers.
const REMEMBERED: usize = 1024;
/// The longest header of a token that is looked at for its type, in characters: that of ours has a hundred.
const LONGEST_HEADER: usize = 1024;

/// What a request's token comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The only overlay that it is for, which it chooses where nothing else is chosen.
    pub only: Option<EnvironmentId>,
    /// Why it gives no right, where it gives none.
    pub refused: Option<Refused>,
    /// Whether it stands in `Authorization`, which is then nobody else's.
    pub in_authorization: bool,
}

/// The right that the token of a request gives; `None` where it has none.
#[must_use]
pub fn read(tokens: &Tokens, head: &Head<'_>) -> Option<(Right, Bearer)> {
    let own = head.values(TOKEN).map(<[u8]>::trim_ascii).filter(|token| !token.is_empty());
    let authorized = head.values(AUTHORIZATION).filter_map(ours);
    let in_authorization = authorized.clone().next().is_some();
    let mut all = own.chain(authorized);
    let token = all.next()?;
    let granted = match all.next() {
        // Which of them somebody else reads is not known.
        Some(_) => Err(Refused::Several),
        None => verify(tokens, token),
    };
    Some(match granted {
        Ok(grant) => {
            (grant.right.clone(), Bearer { only: grant.only.clone(), refused: None, in_authorization })
        }
        Err(refused) => {
            count_refused_token(refused);
            (Right::Nobody, Bearer { only: None, refused: Some(refused), in_authorization })
        }
    })
}

/// The token in a value of `Authorization`, where it is one of ours: by its type, valid or not.
fn ours(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return None;
    }
    let token = token.trim_ascii();
    let header = &token[..memchr::memchr(b'.', token)?.min(LONGEST_HEADER)];
    let mut json = [0; LONGEST_HEADER];
    let length = BASE64.decode_slice(header, &mut json).ok()?;
    let json = &mut json[..length];
    json.make_ascii_lowercase();
    memmem::find(json, TYPE.as_bytes()).map(|_| token)
}

/// What a verified token gives.
struct Grant {
    right: Right,
    only: Option<EnvironmentId>,
    /// In seconds since 1970.
    until: u64,
}

impl Grant {
    fn of(claims: Claims) -> Self {
        let until = claims.exp;
        match claims.overlays {
            Overlays::Any => Self { right: Right::Any, only: None, until },
            Overlays::These(ids) => {
                let only = if let [only] = &ids[..] { Some(only.clone()) } else { None };
                Self { right: Right::These(ids.into()), only, until }
            }
        }
    }
}

/// The tokens that were verified with the keys of one generation.
#[derive(Default)]
struct Verified {
    generation: u64,
    known: HashMap<Box<[u8]>, Arc<Grant>, RandomState>,
}

thread_local! {
    /// Only what is good is remembered: strangers cannot fill it.
    static VERIFIED: RefCell<Verified> = RefCell::default();
}

fn verify(tokens: &Tokens, token: &[u8]) -> Result<Arc<Grant>, Refused> {
    let keyring = tokens.keyring();
    let now = clock::now().0 / 1000;
    VERIFIED.with_borrow_mut(|verified| {
        if verified.generation != keyring.generation {
            verified.known.clear();
            verified.generation = keyring.generation;
        }
        let grant = match verified.known.get(token) {
            Some(grant) => grant.clone(),
            None => {
                let grant = Arc::new(Grant::of(keyring.verify(token)?));
                if verified.known.len() >= REMEMBERED {
                    verified.known.clear();
                }
                verified.known.insert(token.into(), grant.clone());
                grant
            }
        };
        if grant.until <= now {
            verified.known.remove(token);
            return Err(Refused::Expired);
        }
        Ok(grant)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h1::request;
    use crate::tokens::keys::TokenSettings;
    use crate::tokens::{self, Audience, Kind};

    #[test]
    fn a_token_that_is_remembered_is_worth_nothing_from_the_moment_it_expires() {
        let folder = tempfile::tempdir().expect("folder");
        let key = folder.path().join("key");
        std::fs::write(&key, tokens::make(Kind::Ed25519).expect("made").private).expect("write");
        let settings = TokenSettings { keys: vec![key.clone()], audience: "a".to_owned() };
        let tokens = Tokens::load(&settings).expect("good");
        let now = || clock::now().0 / 1000;
        let claims = Claims {
            aud: Audience::One("a".to_owned()),
            exp: now() + 2,
            nbf: None,
            iat: None,
            overlays: Overlays::Any,
        };
        let signing = tokens::signing_key(&key).expect("good");
        let token = tokens::issue(&claims, &signing).expect("issued");
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-token: {token}\r\n\r\n");
        let right = || {
            let read = request::parse(head.as_bytes(), |head| read(&tokens, head));
            read.expect("right").expect("whole").expect("a token").0
        };
        assert_eq!(right(), Right::Any);
        while now() < claims.exp {
            let (right, after) = (right(), now());
            assert!(right == Right::Any || after >= claims.exp);
        }
        assert_eq!(right(), Right::Nobody);
    }

    #[test]
    fn only_what_has_our_type_is_taken_out_of_authorization() {
        let token = |header: &str| format!("{}.e30.c2ln", BASE64.encode(header));
        for (value, taken) in [
            (format!("Bearer {}", token(r#"{"typ":"overlay+jwt"}"#)), true),
            (format!("bearer   {}", token(r#"{"typ":"OVERLAY+JWT"}"#)), true),
            (format!("Bearer {}", token(r#"{"typ":"application/overlay+jwt"}"#)), true),
            (format!("Bearer {}", token(r#"{"typ":"JWT"}"#)), false),
            (format!("Basic {}", token(r#"{"typ":"overlay+jwt"}"#)), false),
            // A header of a thousand characters is none of ours.
            (
                format!(
                    "Bearer {}",
                    token(&format!(r#"{{"x":"{}","typ":"overlay+jwt"}}"#, "a".repeat(2000)))
                ),
                false,
            ),
            ("Bearer".to_owned(), false),
            ("Bearer ".to_owned(), false),
            ("Bearer .".to_owned(), false),
            ("Bearer \u{e4}.\u{e4}".to_owned(), false),
        ] {
            assert_eq!(ours(value.as_bytes()).is_some(), taken, "{value}");
        }
    }
}
