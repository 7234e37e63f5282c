//! A directory as store: one file per environment.

pub mod follow;
pub mod read;
pub mod watch;
pub mod write;
