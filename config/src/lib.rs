//! Overlane's pure core: blueprints in, routing table out.
//!
//! Data flows one way: [`blueprint::parse`] turns text into blueprints, [`lineage::Lineages`]
//! resolves their meaning over all files, [`table::RoutingTable::compile`] turns that into what
//! [`route::decide`] looks requests up in. Nothing here does I/O, reads a clock or an environment
//! variable, logs, or knows of Pingora and tokio; `clippy.toml` beside this crate holds it to that.

pub mod blueprint;
pub mod browser;
pub mod carrier;
pub mod diagnostic;
pub mod diff;
pub mod lineage;
pub mod name;
pub mod path;
pub mod preview;
pub mod route;
pub mod selector;
pub mod table;
pub mod time;
pub mod url;
