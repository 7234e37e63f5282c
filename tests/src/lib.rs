//! The harness of the end-to-end tests: real sockets that record what arrives, scripts that drive both
//! ends of a proxy, and the proxies themselves, one for each engine. The tests are in `tests/`.
#![allow(clippy::unwrap_used)]

pub mod cable;
pub mod case;
pub mod corpus;
pub mod etcd;
pub mod exchange;
pub mod fuzz;
pub mod kubernetes;
pub mod message;
pub mod otlp;
mod panics;
pub mod play;
pub mod scene;
pub mod script;
pub mod stage;
pub mod told;
