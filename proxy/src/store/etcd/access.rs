//! How an etcd lets us in: what `etcdctl` reads from its environment, so that where that works, this does.

use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;

use crate::settings::SettingsError;
use crate::store::shared::Fault;
use crate::tls::certificates::Pair;
use crate::tls::upstreams::UpstreamTls;

/// Certificates, and a user with a password.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// The authorities of etcd's certificates (`ETCDCTL_CACERT`); the system's by default.
    pub ca: Option<PathBuf>,
    /// What is shown to etcd (`ETCDCTL_CERT`, `ETCDCTL_KEY`).
    pub pair: Option<Pair>,
    /// Who we are there (`ETCDCTL_USER`, `ETCDCTL_PASSWORD` or `OVERLANE_ETCD_PASSWORD_FILE`).
    pub user: Option<User>,
    /// Whether its password may go over a network in the clear (`OVERLANE_ETCD_IN_THE_CLEAR`): something else encrypts it.
    pub in_the_clear: bool,
}

/// A user of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: Password,
}

/// Where a password is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// Here.
    Text(String),
    /// In a file, which is read whenever it is needed; a line's end at its end does not count.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("…"),
            Self::File(path) => path.fmt(f),
        }
    }
}

impl Access {
    /// What this process' environment says.
    ///
    /// # Errors
    /// It contradicts itself, or asks for what is not done.
    pub fn from_environment() -> Result<Self, Fault> {
        Self::of(|name| env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Fault> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if variable("ETCDCTL_INSECURE_SKIP_TLS_VERIFY").is_some_and(|value| value != "false") {
            let why = "etcd is always verified: unset ETCDCTL_INSECURE_SKIP_TLS_VERIFY, and name its authority in \
                       ETCDCTL_CACERT";
            return Err(Fault(why.to_owned()));
        }
        let path = |name: &str| variable(name).map(PathBuf::from);
        let pair = match (path("ETCDCTL_CERT"), path("ETCDCTL_KEY")) {
            (Some(certificate), Some(key)) => Some(Pair { certificate, key }),
            (None, None) => None,
            (Some(_), None) => return Err(Fault("ETCDCTL_CERT needs ETCDCTL_KEY beside it".to_owned())),
            (None, Some(_)) => return Err(Fault("ETCDCTL_KEY needs ETCDCTL_CERT beside it".to_owned())),
        };
        let password = match (variable("ETCDCTL_PASSWORD"), path("OVERLANE_ETCD_PASSWORD_FILE")) {
            (Some(_), Some(_)) => {
                let why = "both ETCDCTL_PASSWORD and OVERLANE_ETCD_PASSWORD_FILE are set: unset one";
                return Err(Fault(why.to_owned()));
            }
            (Some(text), None) => Some(Password::Text(text)),
            (None, path) => path.map(Password::File),
        };
        let user = match (variable("ETCDCTL_USER"), password) {
            // As etcdctl: a name may have colons where the password is elsewhere.
            (Some(name), Some(password)) => Some(User { name, password }),
            (Some(user), None) => {
                let (name, password) = user.split_once(':').ok_or_else(|| {
                    Fault("ETCDCTL_USER needs ETCDCTL_PASSWORD or OVERLANE_ETCD_PASSWORD_FILE".to_owned())
                })?;
                Some(User { name: name.to_owned(), password: Password::Text(password.to_owned()) })
            }
            (None, Some(_)) => return Err(Fault("a password for etcd needs ETCDCTL_USER".to_owned())),
            (None, None) => None,
        };
        let in_the_clear = match variable("OVERLANE_ETCD_IN_THE_CLEAR").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                return Err(Fault(format!("OVERLANE_ETCD_IN_THE_CLEAR is `true` or `false`, not `{other}`")));
            }
        };
        Ok(Self { ca: path("ETCDCTL_CACERT"), pair, user, in_the_clear })
    }

    /// Whether endpoints that do not say so are spoken to in TLS.
    pub(super) fn speaks_tls(&self) -> bool {
        self.ca.is_some() || self.pair.is_some()
    }

    /// What handshakes are made with, by the files as they are now.
    pub(super) fn handshakes(&self) -> Result<Arc<ClientConfig>, SettingsError> {
        let (hosts, server_name) = (Vec::new(), None);
        let settings = UpstreamTls { hosts, ca: self.ca.clone(), pair: self.pair.clone(), server_name };
        Ok(settings.handshakes()?.http2.clone())
    }
}

impl User {
    /// Its password, as it is now.
    pub(super) fn password(&self) -> Result<String, Fault> {
        match &self.password {
            Password::Text(text) => Ok(text.clone()),
            Password::File(path) => {
                let text = fs::read_to_string(path).map_err(|why| {
                    Fault(format!("cannot read the password of etcd's user in {}: {why}", path.display()))
                })?;
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Access, String> {
        let known = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Access::of(known).map_err(|fault| fault.0)
    }

    #[test]
    fn what_etcdctl_reads_is_read() {
        assert_eq!(of(&[("ETCDCTL_USER", "")]), Ok(Access::default()));
        let user = |variables: &[(&str, &str)]| of(variables).expect("right").user.expect("user");
        let both = user(&[("ETCDCTL_USER", "overlane:a:b")]);
        assert_eq!((both.name.as_str(), both.password().expect("text")), ("overlane", "a:b".to_owned()));
        let apart = user(&[("ETCDCTL_USER", "over:lane"), ("ETCDCTL_PASSWORD", "a")]);
        assert_eq!((apart.name.as_str(), apart.password().expect("text")), ("over:lane", "a".to_owned()));
        let tls = of(&[("ETCDCTL_CACERT", "a"), ("ETCDCTL_CERT", "b"), ("ETCDCTL_KEY", "c")]).expect("right");
        assert!(tls.speaks_tls() && tls.pair.is_some());
    }

    #[test]
    fn a_password_is_in_a_file_and_nowhere_to_be_seen() {
        let file = tempfile::NamedTempFile::new().expect("file");
        fs::write(file.path(), "secret\n").expect("write");
        let path = file.path().to_str().expect("path");
        let access = of(&[("ETCDCTL_USER", "a"), ("OVERLANE_ETCD_PASSWORD_FILE", path)]).expect("right");
        assert_eq!(access.user.expect("user").password().expect("file"), "secret");
        let access = of(&[("ETCDCTL_USER", "a:secret")]).expect("right");
        assert!(!format!("{access:?}").contains("secret"));
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_the_remedy() {
        for (variables, remedy) in [
            (&[("ETCDCTL_CERT", "a")][..], "needs ETCDCTL_KEY"),
            (&[("ETCDCTL_KEY", "a")], "needs ETCDCTL_CERT"),
            (&[("ETCDCTL_USER", "a")], "needs ETCDCTL_PASSWORD"),
            (&[("ETCDCTL_PASSWORD", "a")], "needs ETCDCTL_USER"),
            (&[("ETCDCTL_PASSWORD", "a"), ("OVERLANE_ETCD_PASSWORD_FILE", "b")], "unset one"),
            (&[("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "true")], "ETCDCTL_CACERT"),
        ] {
            assert!(of(variables).expect_err("contradiction").contains(remedy), "{variables:?}");
        }
    }
}
