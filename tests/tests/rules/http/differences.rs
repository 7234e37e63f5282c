//! In what the engines are not what they should be, and why. Each is used by a case, which fails when the difference is
//! gone.

use overlane_tests::case::Difference;

/// Pingora reads the trailers of HTTP/1.1 and forwards none.
pub(super) const TRAILERS: Difference = Difference("Pingora drops the trailers of HTTP/1.1 messages");

/// Not told otherwise, that is: its session can be set to write none (`set_ignore_info_resp`), and is not yet.
pub(super) const INTERIM_FOR_1_0: Difference =
    Difference("Pingora sends interim responses to HTTP/1.0 clients too (RFC 9110, section 15.2)");

/// Where a chunked body ends only its reader knows, and that one keeps what it read too much.
pub(super) const AFTER_CHUNKS: Difference = Difference(
    "Pingora closes after a chunked request that others follow in the same bytes, and said `keep-alive`",
);

/// It watches for the client's end while it waits for the response, and decides then.
pub(super) const PIPELINED_AND_HALF_CLOSED: Difference = Difference(
    "Pingora says `close` to a client that sends no more, if it notices before it answers, and does not serve what that client had pipelined",
);

/// Connection options are validated before a filter could mend them.
pub(super) const HOST_NOMINATED: Difference =
    Difference("Pingora refuses a request whose `Connection` names `Host`");

/// httparse forgives these in responses, and what Pingora writes is made anew from what it read.
pub(super) const LENIENT_HEADS: Difference = Difference(
    "Pingora takes bare LF, folded lines and white space before the colon in responses, and writes none of them on",
);

/// The length is gone before a filter sees the head.
pub(super) const LENGTH_AND_CHUNKS: Difference = Difference(
    "Pingora drops the length of a response that has a length and chunks, as RFC 9112, section 6.3 allows",
);

/// A response filter of ours could refuse them, and does not yet.
pub(super) const CODINGS: Difference = Difference(
    "Pingora hands transfer codings on that it does not know, and reads to the close where the last is not chunked",
);

/// Its reader of chunks looks at sizes and at little else.
pub(super) const LENIENT_CHUNKS: Difference = Difference(
    "Pingora takes an empty line as the last chunk, and does not read extensions and trailers; it reframes what it forwards",
);

/// 101 is a final response to it, whoever asked. A response filter of ours could refuse it, and does not yet.
pub(super) const UNASKED_SWITCH: Difference =
    Difference("Pingora hands a 101 on that the client did not ask for, and tunnels");

/// The decision looks for a path that begins with `/`.
pub(super) const OPTIONS_STAR: Difference =
    Difference("no route matches the target `*`, so that OPTIONS * is a 404");

/// It counts no interim responses.
pub(super) const INTERIM_FLOOD: Difference =
    Difference("Pingora forwards interim responses without end, one at a time");

/// While Pingora writes a request's body it reads nothing of the response: an upstream that stops reading until its
/// answer is read is stuck until the write's deadline. What certainly fits into the buffers of two sockets goes through.
pub(super) const DUPLEX_ON_PINGORA: usize = 64 * 1024;

/// It sets the date of every response that it writes.
pub(super) const DATE: Difference = Difference("Pingora replaces the upstream's Date by its own");

/// Seen where the client waited for the upstream's 100 and got it.
pub(super) const AFTER_CONTINUE: Difference =
    Difference("Pingora closes both connections after an exchange with `Expect: 100-continue`, and says so");
