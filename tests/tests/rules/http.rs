//! HTTP/1.1 as a script for both ends, run on each engine, and what they did compared.

use overlane_tests::script::Script;

/// Bodies, however they are delimited.
mod bodies;
/// Other carriers than our own.
mod carriers;
/// Keeping, closing and losing connections.
mod connections;
/// `Expect: 100-continue` and interim responses.
mod continued;
/// Hostile requests, one a line.
mod corpus;
/// The key where applications drop it.
mod correlation;
/// What is counted.
mod counted;
/// Deadlines.
mod deadlines;
/// In what the engines differ, and why.
mod differences;
/// Hostile requests of HTTP/2.
mod downgrade;
/// Final responses that come before the request is all there.
mod early;
/// Generated exchanges, compared.
mod generated;
/// What belongs to one connection.
mod hop_by_hop;
/// The key on its way.
mod keys;
/// How much is taken, kept and held back.
mod limits;
mod pipelining;
/// Several requests on one connection.
/// How slowly clients may send.
mod rates;
/// Receipts of the whole path.
mod receipts;
/// Requests that are rewritten, or too large.
mod refused_requests;
/// Responses on which readers could disagree.
mod refused_responses;

/// An answer that keeps the connection.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// The plainest request.
const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// A client that announces a body of so many bytes and waits for leave to send it.
fn expecting(length: usize) -> Script {
    Script::new().send(format!(
        "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    ))
}
