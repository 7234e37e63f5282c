//! Overlane: overlay environments over one shared baseline.
//!
//! `overlane-config` decides; this crate moves the bytes and keeps the world around the decision:
//! the data plane on Pingora ([`plane`]), the stores ([`store`]), the control side ([`control`]), the
//! admin listener ([`admin`]) and the command line ([`cli`]). [`process`] puts them together.

pub mod access;
pub mod admin;
mod answers;
mod api;
pub mod bench;
pub mod calls;
pub mod capacity;
pub mod cli;
pub mod client;
pub mod clock;
pub mod control;
mod cores;
pub mod correlation;
pub mod decisions;
pub mod demo;
pub mod explain;
pub mod h1;
pub mod hub;
mod leases;
mod leftovers;
pub mod local;
pub mod logs;
pub mod manifests;
pub mod memory;
pub mod messages;
pub mod metrics;
pub mod names;
pub mod panics;
mod pauses;
pub mod plane;
pub mod process;
#[cfg(test)]
mod reference;
pub mod settings;
#[cfg(test)]
mod simulation;
pub mod snapshot;
pub mod stack;
pub mod stats;
pub mod status;
pub mod store;
pub mod systemd;
pub mod tls;
pub mod tokens;
pub mod traces;
mod tunnel;
pub mod upstream;
