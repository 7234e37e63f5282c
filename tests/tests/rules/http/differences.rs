//! In what the engines are not what they should be, and why. Each is used by a case, which fails when the difference is
//! gone.

use overlane_tests::case::Difference;

/// Pingora reads the trailers of HTTP/1.1 to their end and looks at none of them.
pub(super) const TRAILERS: Difference = Difference(
    "Pingora drops the trailers of HTTP/1.1 messages, of responses also misleading ones, and tells upstreams of no `TE: trailers`",
);

/// It watches for the client's end while it waits for the response, and decides then.
pub(super) const PIPELINED_AND_HALF_CLOSED: Difference = Difference(
    "Pingora says `close` to a client that sends no more, if it notices before it answers, and does not serve what that client had pipelined",
);

/// Connection options are validated before a filter could mend them.
pub(super) const HOST_NOMINATED: Difference =
    Difference("Pingora refuses a request whose `Connection` names `Host`");

/// What is nominated is gone before a filter sees the head; the body is framed anew, and is right.
pub(super) const LENGTH_NOMINATED: Difference =
    Difference("Pingora sends a request in chunks whose `Connection` names `Content-Length`");

/// Its session ends the connection where the answer leaves before the body was read.
pub(super) const REFUSED_WITH_BODY: Difference =
    Difference("Pingora closes after an answer to a request whose body it did not read, and says so");

/// httparse forgives these in responses, and what Pingora writes is made anew from what it read.
pub(super) const LENIENT_HEADS: Difference = Difference(
    "Pingora takes bare LF, folded lines and white space before the colon in responses, and writes none of them on",
);

/// The length is gone before a filter sees the head.
pub(super) const LENGTH_AND_CHUNKS: Difference = Difference(
    "Pingora drops the length of a response that has a length and chunks, as RFC 9112, section 6.3 allows",
);

/// It counts no interim responses.
pub(super) const INTERIM_FLOOD: Difference =
    Difference("Pingora forwards interim responses without end, one at a time");

/// While Pingora writes a request's body it reads nothing of the response: an upstream that stops reading until its
/// answer is read is stuck until the write's deadline. What certainly fits into the buffers of two sockets goes through.
pub(super) const DUPLEX_ON_PINGORA: usize = 64 * 1024;

/// What stands behind a head is a body to it (and cloudflare/pingora#946: what the upstream says early can end the
/// tunnel).
pub(super) const EARLY_IN_AN_UPGRADE: Difference =
    Difference("Pingora refuses an upgrade whose client speaks before the switch");

/// It ends the exchange when one side of a tunnel does.
pub(super) const HALF_CLOSED_TUNNEL: Difference = Difference(
    "Pingora may end a tunnel when its client sends no more, whatever the upstream still has to say",
);

/// It sets the date of every response that it writes.
pub(super) const DATE: Difference = Difference("Pingora replaces the upstream's Date by its own");

/// Seen where the client waited for the upstream's 100 and got it.
pub(super) const AFTER_CONTINUE: Difference =
    Difference("Pingora closes both connections after an exchange with `Expect: 100-continue`, and says so");

/// Its pool knows addresses and what is spoken there, not whose they are.
pub(super) const BY_ADDRESS: Difference =
    Difference("Pingora keeps the connections of what was removed, for whoever has the same address");

/// What it carries ends when its peers end it.
pub(super) const STREAMS: Difference =
    Difference("Pingora ends no stream and no tunnel because its environment is gone");

/// Whether it keeps a connection is settled when it has read the final head.
pub(super) const KEEPS_DOUBTFUL: Difference = Difference(
    "Pingora keeps the connection of an upstream whose interim response had a length, or that did not ask for a body that waited for it",
);
