//! What must hold for any bytes: the bodies of the fuzz targets in `fuzz/`, and of the test that replays their corpora.
//!
//! None is content with the absence of a panic: each holds our reader against another one, or against what it wrote
//! itself. What another reader takes and ours refuses is no finding; what ours takes must mean the same to both.

pub mod announced;
pub mod blueprint;
pub mod carriers;
pub mod chunks;
pub mod engines;
pub mod forwarded;
pub mod head;
pub mod receipts;
pub mod tokens;

/// A target: its name, and what must hold for any input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("announced", announced::check),
    ("blueprint", blueprint::check),
    ("carriers", carriers::check),
    ("chunks", chunks::check),
    ("engines", engines::check),
    ("forwarded", forwarded::check),
    ("head", head::check),
    ("receipts", receipts::check),
    ("tokens", tokens::check),
];
