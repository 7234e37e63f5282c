#!/usr/bin/env bash
# Builds the binary that is released. From the same commit, with the same compilers, it has the same bytes in whatever
# folder it is built (.ci/reproducible holds that): no path of the machine is in it.
set -euo pipefail
cd "$(dirname "$0")/.."
export CMAKE=/nonexistent
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$PWD=/overlane --remap-path-prefix=$home=/cargo"
# ring, zstd and mimalloc are C, and assertions name their files.
export CFLAGS="-ffile-prefix-map=$PWD=/overlane -ffile-prefix-map=$home=/cargo"
# And mimalloc the time at which it was compiled (`__TIME__`), which compilers take from here.
export SOURCE_DATE_EPOCH=0
cargo build --profile dist --locked -p overlane
strip "${CARGO_TARGET_DIR:-target}/dist/overlane" -o "${CARGO_TARGET_DIR:-target}/dist/overlane.stripped"
sha256sum "${CARGO_TARGET_DIR:-target}/dist/overlane.stripped"
