//! Following the files of certificates and keys while the process runs: events, and a periodic check.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::Event;
use notify::event::{AccessKind, AccessMode, EventKind};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::credentials::Credentials;
use super::upstreams::Upstreams;
use crate::panics;
use crate::store::directory::read::QUIET;
use crate::store::directory::watch::DirWatch;

/// Reads the files again whenever something happened to them and is over for a moment, and every `resync`;
/// never ends.
pub async fn follow(followed: Arc<dyn Followed>, resync: Duration) {
    let bell = Arc::new(Notify::new());
    let mut watches = watch(&*followed, &bell, resync);
    // What changed between the first reading and now is seen as well.
    loop {
        let looker = followed.clone();
        // Files may be slow: not on a thread that serves the control side.
        let looked = tokio::task::spawn_blocking(move || {
            for watch in &mut watches {
                if let Err(error) = watch.follow_replacement() {
                    tracing::warn!(%error, "a directory is not watched any more: changes are seen by the periodic check");
                }
            }
            looker.look();
            watches
        });
        match looked.await {
            Ok(back) => watches = back,
            Err(ended) => return panics::pass_on(ended),
        }
        if timeout(resync, bell.notified()).await.is_ok() {
            // A certificate and its key are two files: both are to be there.
            while timeout(QUIET, bell.notified()).await.is_ok() {}
        }
    }
}

/// Watches the directories of all files. Where the system has no watch left, that is logged, and the periodic
/// check is all there is.
fn watch(followed: &dyn Followed, bell: &Arc<Notify>, resync: Duration) -> Vec<DirWatch> {
    let files = absolute(&followed.files());
    let directories: BTreeSet<_> = files.iter().filter_map(|file| file.parent()).collect();
    let names = names(&files);
    let watch = |directory: &&Path| {
        let (bell, names) = (bell.clone(), names.clone());
        let hear = move |event: notify::Result<Event>| {
            if event.map_or(true, |event| concerns(&event, &names)) {
                bell.notify_one();
            }
        };
        DirWatch::heard_by(directory, hear).inspect_err(|error| {
            let directory = directory.display();
            tracing::warn!(%error, %directory, "no file events: new certificates and keys are seen every {resync:?} only");
        })
    };
    directories.iter().filter_map(|directory| watch(directory).ok()).collect()
}

fn absolute(files: &[PathBuf]) -> Vec<PathBuf> {
    // An absolute path has a parent.
    files.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect()
}

/// What is read from files that may change.
pub trait Followed: Send + Sync + 'static {
    /// The files.
    fn files(&self) -> Vec<PathBuf>;
    /// Reads them again.
    fn look(&self);
    /// What is wrong with them now.
    fn problems(&self) -> Vec<String>;
}

/// All that is followed, each with the name of the task that follows it.
#[derive(Clone)]
pub struct Files(Arc<[(&'static str, Arc<dyn Followed>)]>);

impl Files {
    /// These.
    #[must_use]
    pub fn new(all: impl IntoIterator<Item = (&'static str, Arc<dyn Followed>)>) -> Self {
        Self(all.into_iter().collect())
    }

    /// Each of them.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, Arc<dyn Followed>)> {
        self.0.iter().cloned()
    }

    /// Reads all of them again. Files may be slow.
    pub fn look(&self) {
        self.0.iter().for_each(|(_, followed)| followed.look());
    }

    /// What is wrong with them now.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.0.iter().flat_map(|(_, followed)| followed.problems()).collect()
    }
}

impl Followed for Credentials {
    fn files(&self) -> Vec<PathBuf> {
        let settings = self.settings();
        let pairs = settings.certificates.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
        pairs.chain(settings.clients.iter().map(|clients| &clients.ca)).cloned().collect()
    }

    fn look(&self) {
        self.look();
    }

    fn problems(&self) -> Vec<String> {
        self.problems()
    }
}

impl Followed for Upstreams {
    fn files(&self) -> Vec<PathBuf> {
        self.files().cloned().collect()
    }

    fn look(&self) {
        self.look();
    }

    fn problems(&self) -> Vec<String> {
        self.problems()
    }
}

/// What events are about that concern the files: they themselves, their directory when another one takes
/// its place, and the link that Kubernetes swaps.
fn names(files: &[PathBuf]) -> Arc<BTreeSet<OsString>> {
    let names = files.iter().flat_map(|file| [file.file_name(), file.parent().and_then(Path::file_name)]);
    Arc::new(names.flatten().map(OsString::from).chain([OsString::from("..data")]).collect())
}

fn concerns(event: &Event, names: &BTreeSet<OsString>) -> bool {
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| names.contains(name));
    match event.kind {
        // Our own reading is an event too.
        EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => event.need_rescan(),
        _ => event.need_rescan() || event.paths.iter().any(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::TlsSettings;
    use crate::tls::certificates::Pair;
    use rcgen::{CertificateParams, KeyPair};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Instant;

    const NEVER: Duration = Duration::from_secs(3600);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Writes a new certificate for `host` and its key.
    fn write(folder: &Path, host: &str) {
        fs::create_dir_all(folder).expect("folder");
        let key = KeyPair::generate().expect("key");
        let certificate =
            CertificateParams::new(vec![host.to_owned()]).and_then(|params| params.self_signed(&key));
        // The key comes later, as with most that renew certificates.
        fs::write(folder.join("tls.crt"), certificate.expect("certificate").pem()).expect("write");
        fs::write(folder.join("tls.key"), key.serialize_pem()).expect("write");
    }

    fn load(folder: &Path) -> Arc<Credentials> {
        let pair = Pair { certificate: folder.join("tls.crt"), key: folder.join("tls.key") };
        let settings =
            TlsSettings { certificates: vec![pair], clients: None, only_13: false, roles: vec!["gateway"] };
        Arc::new(Credentials::load(&settings).expect("good"))
    }

    /// Waits until the certificate in force is for `host`.
    async fn until(credentials: &Credentials, host: &str) {
        let until = Instant::now() + PATIENCE;
        while credentials.certificates()[0].names != [host] {
            assert!(Instant::now() < until, "{:?} {:?}", credentials.certificates(), credentials.problems());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_pair_that_is_written_or_renamed_into_place_comes_into_force() {
        let folder = tempfile::tempdir().expect("folder");
        write(folder.path(), "one.example");
        let credentials = load(folder.path());
        let config = credentials.config();
        tokio::spawn(follow(credentials.clone(), NEVER));
        write(folder.path(), "two.example");
        until(&credentials, "two.example").await;
        assert!(!Arc::ptr_eq(&config, &credentials.config()), "handshakes get the new one");
        write(&folder.path().join("new"), "three.example");
        for file in ["tls.crt", "tls.key"] {
            fs::rename(folder.path().join("new").join(file), folder.path().join(file)).expect("rename");
        }
        until(&credentials, "three.example").await;
        assert_eq!(credentials.failures(), 0, "half a renewal is not looked at");
    }

    #[tokio::test]
    async fn the_swap_of_kubernetes_data_link_is_seen() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        write(&at("..1"), "one.example");
        symlink("..1", at("..data")).expect("link");
        for file in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(file), at(file)).expect("link");
        }
        let credentials = load(folder.path());
        tokio::spawn(follow(credentials.clone(), NEVER));
        for (number, host) in [("..2", "two.example"), ("..3", "three.example")] {
            write(&at(number), host);
            symlink(number, at("..data_tmp")).expect("link");
            fs::rename(at("..data_tmp"), at("..data")).expect("swap");
            until(&credentials, host).await;
        }
    }

    #[tokio::test]
    async fn a_directory_that_takes_the_place_of_another_is_followed() {
        let folder = tempfile::tempdir().expect("folder");
        let (now, next) = (folder.path().join("certificates"), folder.path().join("next"));
        write(&now, "one.example");
        let credentials = load(&now);
        tokio::spawn(follow(credentials.clone(), NEVER));
        write(&next, "two.example");
        fs::rename(&now, folder.path().join("old")).expect("away");
        fs::rename(&next, &now).expect("in its place");
        until(&credentials, "two.example").await;
        write(&now, "three.example");
        until(&credentials, "three.example").await;
    }

    #[tokio::test]
    async fn without_events_the_periodic_check_sees_a_new_certificate() {
        let folder = tempfile::tempdir().expect("folder");
        // Events of another directory are not heard.
        let elsewhere = tempfile::tempdir().expect("folder");
        write(elsewhere.path(), "one.example");
        for file in ["tls.crt", "tls.key"] {
            symlink(elsewhere.path().join(file), folder.path().join(file)).expect("link");
        }
        let credentials = load(folder.path());
        tokio::spawn(follow(credentials.clone(), Duration::from_millis(10)));
        write(elsewhere.path(), "two.example");
        until(&credentials, "two.example").await;
    }

    #[test]
    fn what_was_last_good_stays_in_force_while_files_are_bad() {
        let folder = tempfile::tempdir().expect("folder");
        write(folder.path(), "one.example");
        let credentials = load(folder.path());
        let good = fs::read(folder.path().join("tls.key")).expect("read");
        let config = credentials.config();
        for (number, bad) in
            [&b"no key"[..], KeyPair::generate().expect("key").serialize_pem().as_bytes()].iter().enumerate()
        {
            fs::write(folder.path().join("tls.key"), bad).expect("write");
            credentials.look();
            credentials.look();
            assert_eq!((credentials.problems().len(), credentials.failures()), (1, number as u64 + 1));
            assert!(credentials.problems()[0].contains("tls.key"), "{:?}", credentials.problems());
            assert!(Arc::ptr_eq(&config, &credentials.config()));
        }
        fs::remove_file(folder.path().join("tls.key")).expect("remove");
        credentials.look();
        assert!(credentials.problems()[0].contains("cannot read the key"), "{:?}", credentials.problems());
        fs::write(folder.path().join("tls.key"), good).expect("write");
        credentials.look();
        assert_eq!(credentials.problems(), Vec::<String>::new());
        assert!(Arc::ptr_eq(&config, &credentials.config()), "it is the same");
    }
}
