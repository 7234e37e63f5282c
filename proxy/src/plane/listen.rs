//! Listening sockets: one per worker on each address.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UnixStream};

use crate::systemd;
use crate::upstream::Address;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// By which a peer that is gone without a word is noticed, within two minutes: a stream may be silent for
/// as long as it likes.
#[must_use]
pub fn keepalive() -> TcpKeepalive {
    let (after, between) = (Duration::from_secs(60), Duration::from_secs(15));
    TcpKeepalive::new().with_time(after).with_interval(between).with_retries(4)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_keepalive(&keepalive())?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// `count` sockets that share one address; returns the address with the port that was taken.
///
/// `SO_REUSEPORT` would hide a port that another process with the same option holds, so a socket
/// without it probes first.
///
/// # Errors
/// The address is taken or not ours; the message names it.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let context =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    if let Some((address, socket)) = systemd::socket(address) {
        return Ok((address, shared(&socket, count).map_err(context)?));
    }
    if address.port() != 0 {
        let probe = socket(address).map_err(context)?;
        probe.bind(&address.into()).and_then(|()| probe.listen(1)).map_err(context)?;
    }
    let mut taken = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = socket(address).map_err(context)?;
        socket.set_reuse_port(true).and_then(|()| socket.set_nonblocking(true)).map_err(context)?;
        socket.bind(&taken.into()).and_then(|()| socket.listen(BACKLOG)).map_err(context)?;
        let listener: TcpListener = socket.into();
        taken = listener.local_addr().map_err(context)?;
        sockets.push(listener);
    }
    Ok((taken, sockets))
}

/// A socket that was handed over, as often as there are workers: they take turns.
fn shared(socket: &TcpListener, count: usize) -> io::Result<Vec<TcpListener>> {
    socket.set_nonblocking(true)?;
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive())?;
    (0..count).map(|_| socket.try_clone()).collect()
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listening {
    /// Of TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

impl Listening {
    /// Hands it to this thread's runtime.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn accepting(self) -> io::Result<Accepting> {
        match self {
            Self::Tcp(socket) => tokio::net::TcpListener::from_std(socket).map(Accepting::Tcp),
            Self::Unix(socket) => tokio::net::UnixListener::from_std(socket).map(Accepting::Unix),
        }
    }
}

/// A socket that accepts connections.
#[derive(Debug)]
pub enum Accepting {
    /// Of TCP.
    Tcp(tokio::net::TcpListener),
    /// A unix socket.
    Unix(tokio::net::UnixListener),
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Accepted {
    /// By TCP, from that peer.
    Tcp(TcpStream, SocketAddr),
    /// By a unix socket.
    Unix(UnixStream),
}

impl Accepting {
    /// The next connection. Nothing is lost where this is not waited for to its end.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(socket) => socket.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
            Self::Unix(socket) => socket.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }

    /// Lets nobody begin to connect any more; whose handshake is under way comes to be accepted. A client that
    /// is turned away tries again, finds that nobody listens, and knows that nothing was taken from it. The
    /// file of a unix socket is gone by then. Where the socket was handed over it lives on, and who connects waits
    /// for the next process.
    pub fn turn_away(&self) {
        #[cfg(target_os = "linux")]
        if let Self::Tcp(socket) = self
            && !socket.local_addr().is_ok_and(systemd::is_handed_over)
        {
            // Where it cannot be had, the listener closes as any other.
            let _ = socket2::SockRef::from(socket).attach_filter(&without_beginnings());
        }
    }
}

/// A filter that drops segments with which a connection begins, SYN without ACK, and nothing else. What was
/// accepted inherits it.
#[cfg(target_os = "linux")]
fn without_beginnings() -> [socket2::SockFilter; 5] {
    // Of classic BPF (linux/bpf_common.h): the byte of flags (RFC 9293, section 3.1), two of them, compared.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    [
        socket2::SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        socket2::SockFilter::new(AND, 0, 0, SYN | ACK),
        socket2::SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        socket2::SockFilter::new(RETURN, 0, 0, 0),
        socket2::SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// What listens at one address.
#[derive(Debug)]
pub struct Place {
    /// The address, with the port that was taken.
    pub address: Address,
    /// A socket for each worker.
    pub sockets: Vec<Listening>,
    /// The file of a unix socket.
    pub file: Option<SocketFile>,
}

/// Listens at `address` with `count` sockets. The file of a unix socket gets `mode`.
///
/// # Errors
/// The address is taken or not ours; the message names it.
pub fn listen(address: &Address, count: usize, mode: u32) -> io::Result<Place> {
    match address {
        Address::Tcp(address) => {
            let (address, sockets) = bind(*address, count)?;
            let sockets = sockets.into_iter().map(Listening::Tcp).collect();
            Ok(Place { address: Address::Tcp(address), sockets, file: None })
        }
        Address::Unix(path) => {
            let (file, sockets) = bind_unix(Path::new(&**path), count, mode).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
            })?;
            let sockets = sockets.into_iter().map(Listening::Unix).collect();
            Ok(Place { address: address.clone(), sockets, file: Some(file) })
        }
    }
}

/// The file of a unix socket that listens. Dropped, it is removed, unless somebody else's is there by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and number.
    id: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: id(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id(&self.path).is_ok_and(|id| id == self.id) {
            // At worst it stays, and the next start finds that nobody listens there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// `count` handles of one socket: the kernel knows no `SO_REUSEPORT` for these, and whoever is free accepts.
fn bind_unix(path: &Path, count: usize, mode: u32) -> io::Result<(SocketFile, Vec<UnixListener>)> {
    // Two that start at once take turns: each would take the other's file, on which nobody listens yet, for
    // one that was left behind. Where a folder cannot be locked, it does without.
    let _turn = path.parent().and_then(|folder| {
        let folder = File::open(folder).ok()?;
        folder.lock().ok().map(|()| folder)
    });
    remove_left_behind(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::at(path)?;
    // Before it listens: until then nobody can connect.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    let first: UnixListener = socket.into();
    let mut sockets: Vec<_> = (1..count).map(|_| first.try_clone()).collect::<Result<_, _>>()?;
    sockets.push(first);
    Ok((file, sockets))
}

/// Removes the file of a socket on which nobody listens any more, and nothing else.
fn remove_left_behind(path: &Path) -> io::Result<()> {
    // Whatever else is wrong with the path, binding says.
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Whose queue is full is there as well.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?).map_err(|error| error.kind()) {
        Err(io::ErrorKind::ConnectionRefused) => fs::remove_file(path),
        Err(io::ErrorKind::PermissionDenied) => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there already")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_an_error_that_names_it() {
        let (taken, _held) = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 2).expect("free port");
        let error = bind(taken, 1).expect_err("taken");
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("there").mode() & 0o777
    }

    #[test]
    fn a_socket_file_lives_as_long_as_somebody_listens() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("gate.sock");
        let address = Address::Unix(path.display().to_string().into());
        let place = listen(&address, 2, 0o660).expect("free");
        assert_eq!((&place.address, place.sockets.len(), mode(&path)), (&address, 2, 0o660));
        let taken = listen(&address, 1, 0o660).expect_err("taken");
        assert!(
            taken.kind() == io::ErrorKind::AddrInUse && taken.to_string().contains("gate.sock"),
            "{taken}"
        );
        assert_eq!(mode(&path), 0o660, "whoever was refused changed nothing");
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_file_that_was_left_behind_is_replaced_and_that_of_another_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("gate.sock");
        let address = Address::Unix(path.display().to_string().into());
        // As after a kill: std's listener leaves its file.
        drop(UnixListener::bind(&path).expect("free"));
        let first = listen(&address, 1, 0o660).expect("nobody listens");
        fs::remove_file(&path).expect("removed");
        let second = listen(&address, 1, 0o660).expect("nothing is there");
        drop(first);
        assert!(path.exists(), "it is the second one's");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notes");
        fs::write(&path, "kept").expect("written");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        for path in [&path, &link] {
            let refused =
                listen(&Address::Unix(path.display().to_string().into()), 1, 0o660).expect_err("file");
            assert!(refused.to_string().contains("no socket"), "{refused}");
        }
        assert_eq!(fs::read_to_string(&link).expect("there"), "kept");
    }

    #[test]
    fn of_many_that_start_at_once_one_listens() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("gate.sock");
        drop(UnixListener::bind(&path).expect("free"));
        let address = Address::Unix(path.display().to_string().into());
        let started: Vec<_> = std::thread::scope(|scope| {
            let start = || scope.spawn(|| listen(&address, 1, 0o660));
            let starting: Vec<_> = std::iter::repeat_with(start).take(8).collect();
            starting.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        assert_eq!(started.iter().filter(|one| one.is_ok()).count(), 1, "{started:?}");
        std::os::unix::net::UnixStream::connect(&path).expect("the one that listens can be reached");
    }
}
