//! HTTP/1.1 as a script for both ends, run on each engine, and what they did compared.

/// Bodies, however they are delimited.
mod bodies;
/// In what the engines differ, and why.
mod differences;
