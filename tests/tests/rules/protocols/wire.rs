//! The least of both protocols that a test's peers need.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use h2::SendStream;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A connection, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(super) type Io = Box<dyn Stream>;

/// A certificate for `localhost` that is its own authority, as files and as what peers are made with.
pub(super) struct Trusted {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    chain: CertificateDer<'static>,
    secret: Vec<u8>,
    _folder: tempfile::TempDir,
}

pub(super) static TRUSTED: LazyLock<Trusted> = LazyLock::new(|| {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    let (chain, secret) = (cert.der().clone(), signing_key.serialize_der());
    Trusted { certificate, key, chain, secret, _folder: folder }
});

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    rustls::crypto::ring::default_provider().into()
}

/// What a server of one protocol makes handshakes with.
pub(super) fn acceptor(protocol: &str) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(TRUSTED.secret.clone()).unwrap();
    let config =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![TRUSTED.chain.clone()], key).unwrap();
    config.alpn_protocols = vec![protocol.into()];
    Arc::new(config).into()
}

/// Connects, in TLS where a protocol is asked for.
pub(super) async fn connect(address: std::net::SocketAddr, protocol: Option<&str>) -> Io {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let Some(protocol) = protocol else { return Box::new(stream) };
    let mut roots = RootCertStore::empty();
    roots.add(TRUSTED.chain.clone()).unwrap();
    let config =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.into()];
    let connector = TlsConnector::from(Arc::new(config));
    Box::new(connector.connect("localhost".try_into().unwrap(), stream).await.unwrap())
}

/// A head of HTTP/1.1: its lines, without their ends.
pub(super) struct Head(pub(super) Vec<String>);

impl Head {
    /// The next head; `None` at the end.
    pub(super) async fn read(io: &mut BufReader<impl AsyncRead + Unpin>) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if io.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => return Some(Self(lines)),
                line => lines.push(line.to_owned()),
            }
        }
    }

    pub(super) fn path(&self) -> &str {
        self.0[0].split(' ').nth(1).unwrap()
    }

    pub(super) fn status(&self) -> u16 {
        self.0[0].split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let fields = self.0.iter().skip(1).filter_map(|line| line.split_once(": "));
        fields.into_iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(super) fn body(&self) -> Body {
        match self.field("content-length") {
            Some(length) => Body::Length(length.parse().unwrap()),
            None if self.field("transfer-encoding").is_some() => Body::Chunked,
            None => Body::Length(0),
        }
    }
}

/// How a body is delimited, and what is left of it.
pub(super) enum Body {
    Length(usize),
    Chunked,
    /// Its trailers.
    Read(Head),
}

impl Body {
    /// The next piece; `None` at its end.
    pub(super) async fn next(
        &mut self,
        io: &mut BufReader<impl AsyncRead + Unpin>,
    ) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Read(_) | Self::Length(0) => Ok(None),
            Self::Length(left) => {
                let mut piece = vec![0; (*left).min(16 * 1024)];
                let read = io.read(&mut piece).await?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= read;
                piece.truncate(read);
                Ok(Some(piece))
            }
            Self::Chunked => {
                let mut size = String::new();
                io.read_line(&mut size).await?;
                let size = usize::from_str_radix(size.trim_end(), 16)
                    .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                if size == 0 {
                    let trailers = Head::read(io).await.ok_or(io::ErrorKind::UnexpectedEof)?;
                    // As if a first line were there.
                    *self = Self::Read(Head([vec![String::new()], trailers.0].concat()));
                    return Ok(None);
                }
                let mut piece = vec![0; size + 2];
                io.read_exact(&mut piece).await?;
                piece.truncate(size);
                Ok(Some(piece))
            }
        }
    }

    /// A trailer, once the body is read.
    pub(super) fn trailer(&self, name: &str) -> Option<&str> {
        match self {
            Self::Read(trailers) => trailers.field(name),
            _ => None,
        }
    }
}

/// A chunk.
pub(super) fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

/// Sends data as flow control allows.
pub(super) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(room)) => {
                let piece = data.split_to(room.min(data.len()));
                if stream.send_data(piece, false).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}
