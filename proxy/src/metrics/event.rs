//! Things that are simply counted.

/// Things that are simply counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection was accepted.
    ConnectionAccepted,
    /// A connection ended.
    ConnectionClosed,
    /// A request of HTTP/2 was refused, since this worker has too many.
    StreamRefused,
    /// A connection did not begin with the header of the PROXY protocol that it has to begin with.
    ProxyHeaderRefused,
    /// A connection became a tunnel.
    TunnelOpened,
    /// A tunnel ended.
    TunnelClosed,
    /// A request whose head was read.
    RequestStarted,
    /// Its answer is over.
    RequestEnded,
    /// A request named an overlay that nobody knows.
    UnknownOverlay,
    /// The authorizer was asked, and gave a right.
    AuthorizerGranted,
    /// It gave none.
    AuthorizerRefused,
    /// It did not answer, or not in time.
    AuthorizerFailed,
    /// It was not asked: so many questions are open already.
    AuthorizerBusy,
    /// Overlay headers of a sender that is not trusted were removed.
    UntrustedHeaders,
    /// Two carriers of a request named different keys.
    ContradictingCarriers,
    /// A head was refused: malformed, too large, too slow.
    HeadRefused,
    /// A connection to an upstream could not be made.
    ConnectFailed,
    /// A request waited for an upstream.
    Held,
    /// A request fell back to another owner.
    FellBack,
    /// A request was sent again that its upstream had refused unprocessed.
    Repeated,
    /// It was not, since too many were.
    RepeatRefused,
    /// A connection that was not in use was closed to make room for another one.
    IdleClosed,
    /// A connection came to a listener that had as many as it may.
    ListenerFull,
    /// A connection of a client that had as many as it may.
    ClientFull,
    /// An access-log line was dropped because the writer could not keep up.
    AccessLogDropped,
    /// A trace that was in memory made room for another one before its time.
    TraceEvicted,
    /// Two keys came under one trace id.
    TraceConflict,
    /// A request had passed more proxies than any may.
    Loop,
    /// Receipts that came from upstream were malformed.
    ReceiptsIgnored,
    /// A connection could not be accepted.
    AcceptFailed,
    /// A TLS handshake from the beginning.
    Handshake,
    /// A TLS handshake that resumed a session.
    HandshakeResumed,
}

/// How many there are.
pub(super) const EVENTS: usize = Event::HandshakeResumed as usize + 1;
