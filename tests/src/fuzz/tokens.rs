//! Overlay tokens: what gives a right is signed by the key, for this audience and time, and says just that to a reader
//! that knows nothing of ours.

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use overlane::clock;
use overlane::tokens::keys::keyring;
use overlane::tokens::{self, Audience, Claims, Keyring, Overlays, SigningKey, signing_key};
use ring::hmac;
use serde_json::Value;

const SECRET: &[u8; 32] = b"a secret that everybody may know";
const AUDIENCE: &str = "staging";
const KEY: &str = "fuzz";

struct Keys {
    verify: Keyring,
    sign: SigningKey,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key.json");
        let secret = BASE64.encode(SECRET);
        let key = serde_json::json!({ "kty": "oct", "kid": KEY, "alg": "HS256", "k": secret });
        std::fs::write(&path, key.to_string()).expect("written");
        let verify = keyring(std::slice::from_ref(&path), Some(AUDIENCE)).expect("a keyring");
        Keys { verify, sign: signing_key(&path).expect("a key") }
    })
}

/// Input of one line is a token as it comes; of two, a header and claims that are signed as they are. Either is also what
/// claims are made of.
///
/// # Panics
/// Where a rule is broken.
pub fn check(input: &[u8]) {
    let keys = keys();
    check_token(keys, input);
    if let Some(at) = memchr(input) {
        check_token(keys, &signed(&input[..at], &input[at + 1..]));
    }
    let claims = made_of(input);
    let token = tokens::issue(&claims, &keys.sign).expect("signed");
    assert_eq!(keys.verify.verify(token.as_bytes()), Ok(claims), "what is issued is taken");
    check_token(keys, token.as_bytes());
}

fn memchr(input: &[u8]) -> Option<usize> {
    input.iter().position(|byte| *byte == b'\n')
}

fn tag(signed: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed)
}

fn signed(header: &[u8], claims: &[u8]) -> Vec<u8> {
    let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    format!("{signed}.{}", BASE64.encode(tag(signed.as_bytes()))).into_bytes()
}

/// Claims that are right now and for an hour, of these overlays.
fn made_of(input: &[u8]) -> Claims {
    let id = |bytes: &[u8]| {
        let letters: String = bytes.iter().take(63).map(|byte| char::from(b'a' + byte % 26)).collect();
        letters.parse().expect("a label")
    };
    let ids: Vec<_> = input.chunks(8).take(8).map(id).collect();
    let overlays = if ids.is_empty() { Overlays::Any } else { Overlays::These(ids) };
    let exp = clock::now().0 / 1000 + 3600;
    Claims { aud: Audience::One(AUDIENCE.to_owned()), exp, nbf: None, iat: None, overlays }
}

fn check_token(keys: &Keys, token: &[u8]) {
    let before = clock::now().0 / 1000;
    let Ok(claims) = keys.verify.verify(token) else { return };
    let after = clock::now().0 / 1000;
    let (header, said) = naive(token).expect("a token that a naive reader takes");
    assert_eq!((header["alg"].as_str(), header["kid"].as_str()), (Some("HS256"), Some(KEY)));
    let typ = header["typ"].as_str().expect("a type").to_ascii_lowercase();
    assert_eq!(typ.strip_prefix("application/").unwrap_or(&typ), tokens::TYPE);
    assert!(claims.exp >= before && said["exp"].as_f64() == Some(claims.exp as f64));
    let begins = said.get("nbf").filter(|nbf| !nbf.is_null());
    assert!(begins.is_none_or(|nbf| nbf.as_f64().is_some_and(|nbf| nbf <= after as f64)));
    let audience = match &said["aud"] {
        Value::String(one) => one == AUDIENCE,
        Value::Array(several) => several.iter().any(|one| one == AUDIENCE),
        _ => false,
    };
    assert!(audience, "it is for others");
    match (&claims.overlays, &said["overlays"]) {
        (Overlays::Any, said) => assert_eq!(said, "*"),
        (Overlays::These(ids), said) => {
            let ids: Vec<_> = ids.iter().map(|id| Value::from(id.as_str())).collect();
            assert!(!ids.is_empty() && *said == Value::Array(ids));
        }
    }
}

/// The header and the claims of a token whose signature is right.
fn naive(token: &[u8]) -> Option<(Value, Value)> {
    let token = std::str::from_utf8(token).ok()?;
    let [header, claims, signature] = token.split('.').collect::<Vec<_>>().try_into().ok()?;
    let signed = &token[..header.len() + 1 + claims.len()];
    (BASE64.decode(signature).ok()? == tag(signed.as_bytes()).as_ref()).then_some(())?;
    let json = |part: &str| serde_json::from_slice(&BASE64.decode(part).ok()?).ok();
    Some((json(header)?, json(claims)?))
}
