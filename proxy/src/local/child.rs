//! The local process itself: a command, or a container of an image; signals to it and its end.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Between two attempts to reach it while it starts.
const POLL: Duration = Duration::from_millis(25);
/// How long it may take to end where it is told to since it does not listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// What lets this process into a store or a hub: the command is somebody else's program, and is not told.
const SECRETS: [&str; 4] =
    ["OVERLANE_SERVER_TOKEN", "OVERLANE_ADMIN_TOKEN", "ETCDCTL_USER", "ETCDCTL_PASSWORD"];
/// How long a container may take to end once it is told to; then it is removed.
const GRACE: Duration = Duration::from_secs(10);
/// The programs that run images, in the order in which they are looked for.
const CONTAINERS: [&str; 2] = ["docker", "podman"];

/// What is executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// What is set in its environment.
    pub environment: Vec<(&'static str, String)>,
    /// The name of the container that it runs, if it does: that outlives the program where it is killed.
    pub container: Option<String>,
}

impl Program {
    /// A command; `{port}` in its words is the port that it listens on.
    ///
    /// `None` where there is no word.
    #[must_use]
    pub fn command(words: &[OsString], port: u16, environment: Vec<(&'static str, String)>) -> Option<Self> {
        let mut words = words.iter().map(|word| match word.to_str() {
            Some(text) => text.replace("{port}", &port.to_string()).into(),
            None => word.clone(),
        });
        Some(Self { program: words.next()?, arguments: words.collect(), environment, container: None })
    }

    /// A container of an image, in the network of this machine: only so it listens where the sidecar looks for it, and
    /// reaches that on loopback.
    #[must_use]
    pub fn container(
        runtime: PathBuf,
        image: &str,
        name: &str,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        let mut arguments = ["run", "--rm", "--name", name, "--network", "host"].map(OsString::from).to_vec();
        for (variable, _) in &environment {
            // Without a value: it is passed on as it is here.
            arguments.extend(["--env".into(), OsString::from(variable)]);
        }
        arguments.push(image.into());
        Self { program: runtime.into(), arguments, environment, container: Some(name.to_owned()) }
    }
}

/// What can run images: the first such program in the directories of `PATH`.
#[must_use]
pub fn container_runtime(path: Option<&OsStr>) -> Option<PathBuf> {
    let directories: Vec<_> = std::env::split_paths(path?).collect();
    let all = CONTAINERS.iter().flat_map(|program| directories.iter().map(move |at| at.join(program)));
    all.into_iter().find(|program| program.is_file())
}

/// What a local process is told of the world: the port that it listens on, and where its calls go.
#[must_use]
pub fn environment(port: u16, outbound: SocketAddr, without: &str) -> Vec<(&'static str, String)> {
    let proxy = format!("http://{outbound}");
    vec![
        ("PORT", port.to_string()),
        ("HTTP_PROXY", proxy.clone()),
        // What many read instead, since `HTTP_PROXY` is a request's header to a CGI program (httpoxy).
        ("http_proxy", proxy.clone()),
        ("NO_PROXY", without.to_owned()),
        ("no_proxy", without.to_owned()),
        // Node reads the others only so (from 22.21 and 24.5 on).
        ("NODE_USE_ENV_PROXY", "1".to_owned()),
        ("OVERLANE_OUTBOUND", proxy),
    ]
}

/// Signals that are passed on, caught from now on.
pub struct Signals(Vec<(rustix::process::Signal, Signal)>);

impl Signals {
    /// Catches them. To be called on a runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn catch() -> io::Result<Self> {
        use rustix::process::Signal as To;
        let all = [
            (To::INT, SignalKind::interrupt()),
            (To::TERM, SignalKind::terminate()),
            (To::HUP, SignalKind::hangup()),
            (To::QUIT, SignalKind::quit()),
            (To::USR1, SignalKind::user_defined1()),
            (To::USR2, SignalKind::user_defined2()),
        ];
        let caught = all.into_iter().map(|(to, kind)| Ok((to, signal(kind)?)));
        caught.collect::<io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> rustix::process::Signal {
        let caught = self.0.iter_mut().map(|(to, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *to
            })
        });
        futures_util::future::select_all(caught).await.0
    }
}

/// Whether a terminal sends such a signal to the child as well, wherever its standard streams lead: then passing it on would send
/// it twice.
fn terminal_sends(signal: rustix::process::Signal) -> bool {
    use rustix::process::Signal as To;
    let in_foreground =
        || File::open("/dev/tty").is_ok_and(|tty| tcgetpgrp(tty).is_ok_and(|group| group == getpgrp()));
    (signal == To::INT || signal == To::QUIT) && in_foreground()
}

/// Whether a signal tells a process to end.
fn ends(signal: rustix::process::Signal) -> bool {
    use rustix::process::Signal as To;
    [To::INT, To::TERM, To::HUP, To::QUIT].contains(&signal)
}

/// A local process that runs.
pub struct Local {
    child: Child,
    signals: Signals,
    /// What ran the container, and its name, where it is one.
    container: Option<(OsString, String)>,
    /// When a container is removed that was told to end.
    patience: Option<Instant>,
}

/// Why it does not listen.
#[derive(Debug)]
pub enum NotListening {
    /// It ended before.
    Ended(ExitStatus),
    /// It takes too long; it was told to end, and has.
    Silent(ExitStatus),
    /// The system says.
    Io(io::Error),
}

impl Local {
    /// Starts it, with the standard streams of this process.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn start(program: &Program, signals: Signals) -> io::Result<Self> {
        let environment = program.environment.iter().map(|(name, value)| (name, value));
        let mut command = Command::new(&program.program);
        for secret in SECRETS {
            command.env_remove(secret);
        }
        let child = command.args(&program.arguments).envs(environment).spawn()?;
        let container = program.container.clone().map(|name| (program.program.clone(), name));
        Ok(Self { child, signals, container, patience: None })
    }

    /// Removes the container, where it is one: what runs it may be gone, or have been told in vain.
    async fn remove_container(&self) {
        let Some((runtime, name)) = &self.container else { return };
        let mut remove = Command::new(runtime);
        remove.args(["rm", "--force", name]).stdout(Stdio::null()).stderr(Stdio::null());
        // It may have gone by itself just now.
        let _ = timeout(PATIENCE, remove.status()).await;
    }

    fn pass(&mut self, signal: rustix::process::Signal) {
        if self.container.is_some() && ends(signal) {
            self.patience = self.patience.or_else(|| Some(Instant::now() + GRACE));
        }
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid.filter(|_| !terminal_sends(signal)) {
            // It may be gone just now.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it listens, and passes signals on meanwhile.
    ///
    /// # Errors
    /// It ended, or takes longer than `patience`.
    pub async fn listens(&mut self, at: SocketAddr, patience: Duration) -> Result<(), NotListening> {
        let reached = timeout(patience, async {
            loop {
                tokio::select! {
                    ended = self.child.wait() => return Err(match ended {
                        Ok(status) => NotListening::Ended(status),
                        Err(error) => NotListening::Io(error),
                    }),
                    signal = self.signals.next() => self.pass(signal),
                    reached = TcpStream::connect(at) => match reached {
                        Ok(_) => return Ok(()),
                        Err(_) => sleep(POLL).await,
                    },
                }
            }
        });
        match reached.await {
            Ok(done) => done,
            Err(_) => {
                self.end();
                let ended = match timeout(PATIENCE, self.child.wait()).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        self.remove_container().await;
                        self.child.start_kill().map_err(NotListening::Io)?;
                        self.child.wait().await
                    }
                };
                Err(ended.map_or_else(NotListening::Io, NotListening::Silent))
            }
        }
    }

    /// Tells it to end.
    pub fn end(&mut self) {
        self.pass(rustix::process::Signal::TERM);
    }

    /// Waits for its end, and passes signals on meanwhile. A container that does not end when it is told to is removed: as the first
    /// process of its own it does not hear of signals that it does not ask for.
    ///
    /// # Errors
    /// What the system says.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            let until = self.patience;
            let patience = async {
                match until {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                ended = self.child.wait() => return ended,
                signal = self.signals.next() => self.pass(signal),
                () = patience => {
                    self.patience = None;
                    self.remove_container().await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_its_port_and_a_container_the_network_of_this_machine() {
        let environment = environment(4001, ([127, 0, 0, 1], 7490).into(), "localhost");
        let words = ["./api", "--listen=127.0.0.1:{port}"].map(OsString::from);
        let program = Program::command(&words, 4001, environment.clone()).expect("a command");
        assert_eq!(program.arguments, ["--listen=127.0.0.1:4001"]);
        assert_eq!(Program::command(&[], 1, Vec::new()), None);
        let container = Program::container("/usr/bin/podman".into(), "org/api:1", "name", environment);
        let arguments: Vec<_> = container.arguments.iter().map(|word| word.to_string_lossy()).collect();
        let line = arguments.join(" ");
        assert!(
            line.starts_with("run --rm --name name --network host --env PORT --env HTTP_PROXY "),
            "{line}"
        );
        assert!(line.ends_with("--env OVERLANE_OUTBOUND org/api:1"), "{line}");
    }

    #[tokio::test]
    async fn a_container_that_does_not_end_when_it_is_told_to_is_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let (docker, removed) = (folder.path().join("docker"), folder.path().join("removed"));
        let run = format!(
            "trap '' TERM; echo $$ > '{0}/pid'; while :; do sleep 0.05; done",
            folder.path().display()
        );
        let remove =
            format!("echo $* > '{}'; kill -9 $(cat '{}/pid')", removed.display(), folder.path().display());
        std::fs::write(&docker, format!("#!/bin/sh\ncase $1 in run) {run};; *) {remove};; esac\n"))
            .expect("script");
        std::fs::set_permissions(&docker, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("script");
        let program = Program::container(docker, "org/api:1", "overlane-alice-web-1", Vec::new());
        let caught = signal(SignalKind::user_defined2()).expect("signals");
        let signals = Signals(vec![(rustix::process::Signal::USR2, caught)]);
        let mut local = Local::start(&program, signals).expect("started");
        let runs = async {
            while !folder.path().join("pid").exists() {
                sleep(POLL).await;
            }
        };
        timeout(Duration::from_secs(30), runs).await.expect("it runs");
        local.end();
        local.patience = Some(Instant::now());
        let ended = timeout(Duration::from_secs(30), local.ended()).await.expect("in time").expect("ended");
        assert!(!ended.success());
        let told = std::fs::read_to_string(removed).expect("told");
        assert_eq!(told.trim(), "rm --force overlane-alice-web-1");
    }

    #[test]
    fn docker_is_preferred_and_where_nothing_is_installed_nothing_is_found() {
        let folder = tempfile::tempdir().expect("folder");
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        for at in [&one, &two] {
            std::fs::create_dir(at).expect("folder");
        }
        let path = std::env::join_paths([&one, &two]).expect("path");
        let found = || container_runtime(Some(&path));
        assert_eq!((found(), container_runtime(None)), (None, None));
        std::fs::write(one.join("podman"), "").expect("written");
        assert_eq!(found(), Some(one.join("podman")));
        std::fs::write(two.join("docker"), "").expect("written");
        assert_eq!(found(), Some(two.join("docker")));
    }
}
