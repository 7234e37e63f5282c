//! The `overlane` binary.

use std::process::ExitCode;

/// Pingora allocates some sixty times per request; glibc's allocator costs it a fifth more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    overlane::cli::main()
}
