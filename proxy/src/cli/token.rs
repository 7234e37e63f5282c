//! `overlane token`: keys are made, tokens are issued and looked at.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use overlane_config::name::EnvironmentId;
use overlane_config::time::{UnixMillis, parse_duration};

use super::output::{CliError, Output};
use crate::clock;
use crate::settings::SettingsError;
use crate::tokens::keys::keyring;
use crate::tokens::{self, Audience, Claims, Kind, MAX_TOKEN, Overlays, Refused};

/// What is done with tokens.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a key: FILE signs, FILE.pub verifies
    Key(MakeKey),
    /// Sign a token for one overlay, several or any
    Issue(Issue),
    /// Say what a token says, and whether a gateway would take it
    Verify(Verify),
}

/// The flags of `overlane token key`.
#[derive(Debug, Args)]
pub struct MakeKey {
    /// Where the key goes; it must not be there yet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A secret for HMAC-SHA256 instead of a pair for Ed25519: who verifies can sign as well
    #[arg(long)]
    hmac: bool,
}

/// The flags of `overlane token issue`.
#[derive(Debug, Args)]
pub struct Issue {
    /// An overlay that its bearer may choose (repeatable)
    #[arg(long = "overlay", value_name = "ID", required_unless_present = "any", conflicts_with = "any")]
    overlays: Vec<EnvironmentId>,
    /// Its bearer may choose any overlay, and is trusted like the networks of --trust
    #[arg(long)]
    any: bool,
    /// Whom it is for: what the gateways have as `tokens.audience`
    #[arg(long, value_name = "NAME", env = "OVERLANE_TOKEN_AUDIENCE")]
    audience: String,
    /// For how long it is good
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    ttl: String,
    /// The key that signs it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// The flags of `overlane token verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The token; read from standard input where it is not given, or is `-`
    token: Option<String>,
    /// A key that may have signed it, or the public part of one (repeatable)
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// The audience that it has to name; not looked at where it is not given
    #[arg(long, value_name = "NAME", env = "OVERLANE_TOKEN_AUDIENCE")]
    audience: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// What went wrong; also where a token is refused.
pub fn run(verb: &Verb, out: &mut Output<'_>) -> Result<(), CliError> {
    match verb {
        Verb::Key(make) => make_key(make, out),
        Verb::Issue(issue) => issue_token(issue, out),
        Verb::Verify(verify) => verify_token(verify, out),
    }
}

fn of_settings(SettingsError { message, hint }: SettingsError) -> CliError {
    let error = CliError::failure(message);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn make_key(MakeKey { out: path, hmac }: &MakeKey, out: &mut Output<'_>) -> Result<(), CliError> {
    let kind = if *hmac { Kind::Hmac } else { Kind::Ed25519 };
    let made = tokens::make(kind).map_err(|_| CliError::failure("the system has no random numbers"))?;
    let mut public_path = path.clone().into_os_string();
    public_path.push(".pub");
    let public_path = PathBuf::from(public_path);
    write_new(path, 0o600, &made.private)?;
    if let Some(public) = &made.public {
        write_new(&public_path, 0o644, public)?;
    }
    out.line(format_args!("key {}", made.id))?;
    let verifies = if made.public.is_some() { public_path.display() } else { path.display() };
    out.note(format_args!("{} signs, and stays with who issues tokens; {verifies} is for gateways: `tokens: {{keys: [{verifies}], audience: NAME}}`", path.display()));
    Ok(())
}

/// A key that is there already is never overwritten: its tokens would be worth nothing.
fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), CliError> {
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    written.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|why| {
        CliError::failure(format!("cannot write {}: {why}", path.display()))
            .hint("name a file that is not there yet")
    })
}

fn issue_token(issue: &Issue, out: &mut Output<'_>) -> Result<(), CliError> {
    let ttl =
        parse_duration(&issue.ttl).ok().filter(|ttl| *ttl >= Duration::from_secs(1)).ok_or_else(|| {
            CliError::usage(format!("`--ttl {}` is no time", issue.ttl))
                .hint("write it as `1h`, `30m` or `7d`")
        })?;
    let key = tokens::signing_key(&issue.key).map_err(of_settings)?;
    let now = clock::now().0 / 1000;
    let claims = Claims {
        aud: Audience::One(issue.audience.clone()),
        exp: now.saturating_add(ttl.as_secs()),
        nbf: None,
        iat: Some(now),
        overlays: if issue.any { Overlays::Any } else { Overlays::These(issue.overlays.clone()) },
    };
    let token = tokens::issue(&claims, &key).map_err(CliError::failure)?;
    if token.len() > MAX_TOKEN {
        let what = format!("a token for {} overlays is longer than {MAX_TOKEN} bytes", issue.overlays.len());
        return Err(CliError::usage(what).hint("issue several, or one for `--any`"));
    }
    out.line(token)
}

fn verify_token(verify: &Verify, out: &mut Output<'_>) -> Result<(), CliError> {
    let token = match verify.token.as_deref() {
        Some(token) if token != "-" => token.to_owned(),
        _ => {
            let mut text = String::new();
            std::io::stdin().take(MAX_TOKEN as u64 * 2).read_to_string(&mut text)?;
            text
        }
    };
    let token = token.trim();
    let (key, claims) = tokens::read_unverified(token).map_err(|why| refused(why, None))?;
    for (what, value) in said(key.as_deref(), &claims) {
        out.line(format_args!("{what:<10}{value}"))?;
    }
    if verify.keys.is_empty() {
        return Err(CliError::failure("the signature was not looked at: anybody can write such a token")
            .hint("name the keys of the gateway: `--key FILE`"));
    }
    let keyring = keyring(&verify.keys, verify.audience.as_deref()).map_err(of_settings)?;
    keyring.verify(token.as_bytes()).map_err(|why| refused(why, Some(&claims)))?;
    match &verify.audience {
        Some(_) => out.note("a gateway with these keys and this audience takes it"),
        None => {
            out.note("its signature and its time are good; whom it is for was not looked at (`--audience`)");
        }
    }
    Ok(())
}

fn refused(why: Refused, claims: Option<&Claims>) -> CliError {
    let error = CliError::failure(format!("refused: the token {why}"));
    match (why, claims) {
        (Refused::Expired, Some(claims)) => {
            error.hint(format!("it was good until {}: issue another", time(claims.exp)))
        }
        (Refused::NotYetValid, Some(Claims { nbf: Some(nbf), .. })) => {
            error.hint(format!("it is good from {} on", time(*nbf)))
        }
        (Refused::Key, _) => error.hint("take the key that issued it, or its `.pub`"),
        (Refused::Signature, _) => error.hint("it was changed, or signed by another key of that name"),
        (Refused::Audience, _) => {
            error.hint("`--audience` of `issue` and `tokens.audience` of the gateway have to be the same")
        }
        (Refused::Malformed | Refused::Type, _) => {
            error.hint("`overlane token issue` makes tokens: three parts with dots between them")
        }
        _ => error,
    }
}

/// What a token says, line by line.
fn said(key: Option<&str>, claims: &Claims) -> Vec<(&'static str, String)> {
    let shown = |text: &str| overlane_config::name::printable(text, 200);
    let overlays = match &claims.overlays {
        Overlays::Any => "any".to_owned(),
        Overlays::These(ids) => ids.iter().map(EnvironmentId::as_str).collect::<Vec<_>>().join(", "),
    };
    let audience = match &claims.aud {
        Audience::One(one) => shown(one),
        Audience::Several(several) => several.iter().map(|one| shown(one)).collect::<Vec<_>>().join(", "),
    };
    let mut lines = vec![("overlays", overlays), ("audience", audience)];
    lines.extend(claims.iat.map(|at| ("issued", time(at))));
    lines.extend(claims.nbf.map(|at| ("from", time(at))));
    lines.push(("until", time(claims.exp)));
    lines.push(("key", key.map_or_else(|| "not named".to_owned(), shown)));
    lines
}

fn time(seconds: u64) -> String {
    UnixMillis(seconds.saturating_mul(1000)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::run_from;

    /// Runs a command line: its exit code, its result and its notes.
    fn overlane(arguments: &[&str]) -> (u8, String, String) {
        let (mut result, mut notes) = (Vec::new(), Vec::new());
        let all = ["overlane", "token"].iter().chain(arguments).map(|argument| (*argument).to_owned());
        let exit = run_from(all, &mut Output::to(&mut result, &mut notes));
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (exit, text(result), text(notes))
    }

    #[test]
    fn what_is_issued_is_verified_by_the_public_key_and_refusals_say_why() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (key, public, secret) = (at("key"), at("key.pub"), at("secret"));
        assert_eq!(overlane(&["key", "--out", &key]).0, 0);
        assert_eq!(overlane(&["key", "--hmac", "--out", &secret]).0, 0);
        let (exit, _, notes) = overlane(&["key", "--out", &key]);
        assert!(exit == 1 && notes.contains("not there yet"), "a key is never overwritten: {notes}");
        let mode = |path: &str| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::metadata(path).expect("there").permissions().mode() & 0o777
        };
        assert_eq!((mode(&key), mode(&public)), (0o600, 0o644));
        assert!(
            !std::fs::read_to_string(&public).expect("read").contains("\"d\""),
            "what signs is not in it"
        );
        let issued = |key: &str, more: &[&str]| {
            let arguments = [&["issue", "--audience", "staging", "--key", key][..], more].concat();
            overlane(&arguments).1.trim().to_owned()
        };
        let token = issued(&key, &["--overlay", "alice", "--overlay", "bob", "--ttl", "30m"]);
        let (exit, said, _) = overlane(&["verify", "--key", &public, "--audience", "staging", &token]);
        assert!(exit == 0 && said.contains("overlays  alice, bob\n"), "{said}");
        let hmac = issued(&secret, &["--any"]);
        let (exit, said, _) = overlane(&["verify", "--key", &public, "--key", &secret, &hmac]);
        assert!(exit == 0 && said.contains("overlays  any\n"), "{said}");
        for (arguments, word) in [
            (&["verify", &token][..], "was not looked at"),
            (&["verify", "--key", &secret, &token], "names no key"),
            (&["verify", "--key", &public, "--audience", "production", &token], "another audience"),
            (&["verify", "--key", &public, "a.b.c"], "malformed"),
            (&["verify", "--key", &at("nowhere"), &token], "there is no key"),
            (&["issue", "--any", "--audience", "a", "--key", &public], "only verifies"),
            (&["issue", "--any", "--audience", "a", "--key", &key, "--ttl", "soon"], "is no time"),
            (&["issue", "--any", "--overlay", "a", "--audience", "a", "--key", &key], "cannot be used with"),
        ] {
            let (exit, _, notes) = overlane(arguments);
            assert!(exit != 0 && notes.contains(word), "{arguments:?}: {notes}");
            assert!(!notes.contains(&token), "{notes}");
        }
    }
}
