//! In what Pingora differs from what is right, on purpose or because it cannot be mended here. Each is used by a case,
//! which fails when the difference is gone.

use overlane_tests::script::Difference;

/// Pingora reads the trailers of HTTP/1.1 and forwards none.
pub(super) const TRAILERS: Difference = Difference("Pingora drops the trailers of HTTP/1.1 messages");
