use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as BASE64};
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};

use super::keys::{TokenSettings, Tokens, keyring};
use super::*;
use crate::tls::follow::Followed;

const AUDIENCE: &str = "staging";

fn now() -> u64 {
    crate::clock::now().0 / 1000
}

fn claims() -> Value {
    json!({ "aud": AUDIENCE, "exp": now() + 3600, "overlays": ["alice"] })
}

/// A folder with a pair of keys, and a secret.
struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let keys = Self { folder: tempfile::tempdir().expect("folder") };
        for (name, kind) in [("own", Kind::Ed25519), ("other", Kind::Ed25519), ("secret", Kind::Hmac)] {
            let made = make(kind).expect("random numbers");
            fs::write(keys.at(name), made.private).expect("write");
            fs::write(keys.at(&format!("{name}.pub")), made.public.unwrap_or_default()).expect("write");
        }
        keys
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn keyring(&self, names: &[&str]) -> Keyring {
        let paths: Vec<_> = names.iter().map(|name| self.at(name)).collect();
        keyring(&paths, Some(AUDIENCE)).expect("good")
    }

    fn signing(&self, name: &str) -> SigningKey {
        signing_key(&self.at(name)).expect("good")
    }

    fn jwk(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.at(name)).expect("read")).expect("json")
    }
}

/// A token with any header and claims, signed as the key's algorithm has it, whatever the header says.
fn forge(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
    format!("{message}.{}", BASE64.encode(sign(message.as_bytes())))
}

fn with_key(key: &SigningKey, header: &Value, claims: &Value) -> String {
    use jsonwebtoken::crypto::sign;
    signatures::install();
    let algorithm = key.algorithm;
    forge(header, claims, |message| {
        BASE64.decode(sign(message, &key.signs, algorithm).expect("signed")).expect("base64")
    })
}

fn with_secret(secret: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    move |message| hmac::sign(&key, message).as_ref().to_vec()
}

#[test]
fn a_token_is_taken_by_who_has_its_key_and_its_audience() {
    let keys = Keys::new();
    let said: Claims = serde_json::from_value(claims()).expect("claims");
    for (name, verifies) in [("own", "own.pub"), ("own", "own"), ("secret", "secret")] {
        let token = issue(&said, &keys.signing(name)).expect("issued");
        assert_eq!(
            keys.keyring(&[verifies, "other.pub"]).verify(token.as_bytes()),
            Ok(said.clone()),
            "{name}"
        );
        assert_eq!(keys.keyring(&["other.pub"]).verify(token.as_bytes()), Err(Refused::Key), "{name}");
        assert_eq!(read_unverified(&token).map(|(_, claims)| claims), Ok(said.clone()));
    }
}

#[test]
fn what_is_wrong_with_a_token_is_why_it_is_refused() {
    let keys = Keys::new();
    let key = keys.signing("own");
    let keyring = keys.keyring(&["own.pub", "secret"]);
    let id = &*key.id;
    let header = json!({ "typ": TYPE, "alg": "EdDSA", "kid": id });
    let with = |header: &Value, change: &dyn Fn(&mut Value)| {
        let mut claims = claims();
        change(&mut claims);
        keyring.verify(with_key(&key, header, &claims).as_bytes())
    };
    let headers = |change: Value| {
        let mut changed = header.clone();
        for (name, value) in change.as_object().expect("object") {
            changed[name] = value.clone();
        }
        with(&changed, &|_| {})
    };
    assert!(with(&header, &|_| {}).is_ok());
    let cases: [(&str, Result<Claims, Refused>, Refused); 28] = [
        ("expired", with(&header, &|c| c["exp"] = json!(now() - 1)), Refused::Expired),
        ("long expired", with(&header, &|c| c["exp"] = json!(0)), Refused::Expired),
        (
            "no expiry",
            with(&header, &|c| drop(c.as_object_mut().expect("object").remove("exp"))),
            Refused::Malformed,
        ),
        ("expiry of another type", with(&header, &|c| c["exp"] = json!("9999999999")), Refused::Malformed),
        ("expiry below zero", with(&header, &|c| c["exp"] = json!(-1)), Refused::Malformed),
        ("not yet", with(&header, &|c| c["nbf"] = json!(now() + 60)), Refused::NotYetValid),
        ("not yet, as a text", with(&header, &|c| c["nbf"] = json!("0")), Refused::Malformed),
        ("another audience", with(&header, &|c| c["aud"] = json!("production")), Refused::Audience),
        ("other audiences", with(&header, &|c| c["aud"] = json!(["a", "b"])), Refused::Audience),
        (
            "no audience",
            with(&header, &|c| drop(c.as_object_mut().expect("object").remove("aud"))),
            Refused::Malformed,
        ),
        (
            "an audience of another type",
            with(&header, &|c| c["aud"] = json!({ "staging": 1 })),
            Refused::Malformed,
        ),
        ("no overlays", with(&header, &|c| c["overlays"] = json!([])), Refused::Malformed),
        (
            "no word of overlays",
            with(&header, &|c| drop(c.as_object_mut().expect("object").remove("overlays"))),
            Refused::Malformed,
        ),
        (
            "an overlay that is no id",
            with(&header, &|c| c["overlays"] = json!(["alice", "*"])),
            Refused::Malformed,
        ),
        ("another star", with(&header, &|c| c["overlays"] = json!("alice")), Refused::Malformed),
        ("a plain JWT", headers(json!({ "typ": "JWT" })), Refused::Type),
        ("an access token", headers(json!({ "typ": "at+jwt" })), Refused::Type),
        ("no type", headers(json!({ "typ": null })), Refused::Type),
        ("the algorithm none", headers(json!({ "alg": "none" })), Refused::Malformed),
        ("the algorithm NONE", headers(json!({ "alg": "nOnE" })), Refused::Malformed),
        ("the algorithm of a secret", headers(json!({ "alg": "HS256" })), Refused::Signature),
        ("another algorithm", headers(json!({ "alg": "ES256" })), Refused::Signature),
        ("another key's name", headers(json!({ "kid": keys.signing("secret").id })), Refused::Signature),
        ("the name of a file", headers(json!({ "kid": keys.at("other.pub") })), Refused::Key),
        ("a name that is a path", headers(json!({ "kid": "../../../dev/null" })), Refused::Key),
        ("no key's name", headers(json!({ "kid": null })), Refused::Key),
        (
            "a key of its own",
            headers(json!({ "kid": "x", "jwk": keys.jwk("other.pub"), "jku": "http://127.0.0.1/" })),
            Refused::Key,
        ),
        ("something critical", headers(json!({ "crit": ["exp"], "exp": 1 })), Refused::Malformed),
    ];
    for (what, came, expected) in cases {
        assert_eq!(came, Err(expected), "{what}");
    }
}

#[test]
fn what_is_not_signed_by_the_key_that_it_names_is_refused() {
    let keys = Keys::new();
    let keyring = keys.keyring(&["own.pub", "secret"]);
    let id = keys.signing("own").id;
    let header = |alg: &str| json!({ "typ": TYPE, "alg": alg, "kid": &*id });
    let good = with_key(&keys.signing("own"), &header("EdDSA"), &claims());
    assert!(keyring.verify(good.as_bytes()).is_ok());
    let public = keys.jwk("own.pub")["x"].as_str().expect("text").to_owned();
    let file = fs::read(keys.at("own.pub")).expect("read");
    let mut forged = vec![
        (
            "signed anew by another key".to_owned(),
            with_key(&keys.signing("other"), &header("EdDSA"), &claims()),
        ),
        (
            "signed by a known secret under another name".to_owned(),
            with_key(&keys.signing("secret"), &header("HS256"), &claims()),
        ),
        ("not signed".to_owned(), forge(&header("EdDSA"), &claims(), |_| Vec::new())),
        ("none, not signed".to_owned(), forge(&header("none"), &claims(), |_| Vec::new())),
        ("a signature of zeros".to_owned(), forge(&header("EdDSA"), &claims(), |_| vec![0; 64])),
        ("a signature in another alphabet".to_owned(), {
            let (message, signature) = good.rsplit_once('.').expect("parts");
            format!("{message}.{}", STANDARD.encode(BASE64.decode(signature).expect("base64")))
        }),
        ("another part".to_owned(), format!("{good}.x")),
        ("a part less".to_owned(), good.rsplit_once('.').expect("parts").0.to_owned()),
    ];
    // The public key is no secret, in whatever form somebody takes it for one.
    for secret in [&BASE64.decode(&public).expect("base64")[..], public.as_bytes(), &file, b"", &[0; 32]] {
        for alg in ["HS256", "HS512", "EdDSA"] {
            forged.push((
                format!("{alg} with {} bytes of the public key", secret.len()),
                forge(&header(alg), &claims(), with_secret(secret)),
            ));
        }
    }
    let (head, rest) = good.split_once('.').expect("parts");
    let (_, signature) = rest.split_once('.').expect("parts");
    let more = BASE64.encode(json!({ "aud": AUDIENCE, "exp": now() + 3600, "overlays": "*" }).to_string());
    forged.push(("other claims under the same signature".to_owned(), format!("{head}.{more}.{signature}")));
    for (what, token) in forged {
        let came = keyring.verify(token.as_bytes());
        assert!(matches!(came, Err(Refused::Signature | Refused::Malformed)), "{what}: {came:?}");
    }
}

#[test]
fn cut_and_changed_tokens_are_refused_and_nothing_panics() {
    let keys = Keys::new();
    let keyring = keys.keyring(&["own.pub"]);
    let token =
        issue(&serde_json::from_value(claims()).expect("claims"), &keys.signing("own")).expect("issued");
    for cut in 0..token.len() {
        assert!(keyring.verify(&token.as_bytes()[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(keyring.verify(&changed).is_err(), "changed at {at}");
    }
    let huge = format!("{token}{}", "A".repeat(MAX_TOKEN));
    assert_eq!(keyring.verify(huge.as_bytes()), Err(Refused::Malformed));
}

proptest! {
    #[test]
    fn any_bytes_are_no_token(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,90}") {
        let keys = Keyring::default();
        prop_assert!(keys.verify(&bytes).is_err());
        prop_assert!(keys.verify(text.as_bytes()).is_err());
        prop_assert!(read_unverified(&text).is_err());
    }
}

fn message(path: &Path, text: &str) -> String {
    fs::write(path, text).expect("write");
    keyring(&[path.to_owned()], None).map(|_| String::new()).unwrap_or_else(|error| error.message)
}

#[test]
fn a_key_that_is_of_no_use_is_an_error_that_names_its_file_and_never_its_secret() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("key.json");
    let secret = BASE64.encode("s".repeat(31));
    for (text, word) in [
        ("", "no JSON Web Key"),
        ("{}", "no JSON Web Key"),
        (r#"{"kty":"RSA","n":"a"}"#, "neither of Ed25519"),
        (r#"{"kty":"OKP","crv":"X25519","x":"a"}"#, "neither of Ed25519"),
        (r#"{"kty":"OKP","crv":"Ed25519"}"#, "no `x`"),
        (r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#, "not 32 bytes"),
        (r#"{"kty":"OKP","crv":"Ed25519","x":"*"}"#, "no base64url"),
        (r#"{"kty":"OKP","crv":"Ed25519","x":"a","alg":"HS256"}"#, "another one than EdDSA"),
        (r#"{"kty":"oct","k":"c2VjcmV0","kid":""}"#, "`kid` is empty"),
        (r#"{"kty":"oct","k":"c2VjcmV0"}"#, "without a `kid`"),
        (&format!(r#"{{"kty":"oct","kid":"a","k":"{secret}"}}"#), "shorter than 32 bytes"),
        (r#"{"keys":[{"kty":"oct"}]}"#, "without a `kid`"),
    ] {
        let message = message(&path, text);
        assert!(message.contains(word) && message.contains("key.json"), "{text}: {message}");
        assert!(!message.contains(&secret) && !message.contains("c2VjcmV0"), "{message}");
    }
    assert_eq!(message(&path, r#"{"keys":[]}"#), "");
    let keys = Keys::new();
    let twice = [keys.at("own"), keys.at("own.pub")];
    assert!(keyring(&twice, None).expect_err("twice").message.contains("two keys"));
    assert!(signing_key(&keys.at("own.pub")).expect_err("public").message.contains("only verifies"));
    assert!(keyring(&[keys.at("nowhere")], None).expect_err("not there").message.contains("there is no key"));
}

#[test]
fn keys_change_with_their_files_and_what_was_last_good_stays_while_one_is_broken() {
    let keys = Keys::new();
    let settings =
        TokenSettings { keys: vec![keys.at("own.pub"), keys.at("secret")], audience: AUDIENCE.to_owned() };
    let tokens = Tokens::load(&settings).expect("good");
    let said: Claims = serde_json::from_value(claims()).expect("claims");
    let [own, other, secret] =
        ["own", "other", "secret"].map(|name| issue(&said, &keys.signing(name)).expect("issued"));
    let check = |taken: [bool; 3], problems: usize| {
        tokens.look();
        let keyring = tokens.keyring();
        let came = [&own, &other, &secret].map(|token| keyring.verify(token.as_bytes()).is_ok());
        assert_eq!((came, tokens.problems().len()), (taken, problems), "{:?}", tokens.problems());
    };
    check([true, false, true], 0);
    assert_eq!(tokens.keyring().generation, 1, "nothing changed");
    // The next key beside the old one, then alone.
    let set = json!({ "keys": [keys.jwk("own.pub"), keys.jwk("other.pub")] });
    fs::write(keys.at("own.pub"), set.to_string()).expect("write");
    check([true, true, true], 0);
    fs::copy(keys.at("other.pub"), keys.at("own.pub")).expect("copy");
    check([false, true, true], 0);
    fs::write(keys.at("own.pub"), "{").expect("write");
    check([false, true, true], 1);
    assert!(tokens.problems()[0].contains("own.pub") && tokens.failures() == 1);
    // Who takes a key away means it.
    fs::remove_file(keys.at("secret")).expect("remove");
    check([false, true, false], 2);
    fs::write(keys.at("own.pub"), r#"{"keys":[]}"#).expect("write");
    check([false, false, false], 1);
}
