#!/usr/bin/env bash
# A build of the binary with profile-guided optimisation, trained on what a gateway does all day.
# Needs nginx and wrk for the training, and llvm-profdata: of rustup's llvm-tools, or Debian's llvm-19 for Rust 1.95.
set -euo pipefail
cd "$(dirname "$0")/.."
export CMAKE=/nonexistent
target=$(rustc -vV | sed -n 's/^host: //p')
folder=${1:-target/pgo}
mkdir -p "$folder/raw"
folder=$(cd "$folder" && pwd)
# The newest that there is: an older one does not read what rustc writes.
profdata=${LLVM_PROFDATA:-$(ls -v "$(rustc --print sysroot)/lib/rustlib/$target/bin/llvm-profdata" /usr/lib/llvm-*/bin/llvm-profdata 2>/dev/null | tail -1 || true)}
profdata=${profdata:-llvm-profdata}
"$profdata" --version > /dev/null || { echo "no llvm-profdata found: rustup component add llvm-tools, or set LLVM_PROFDATA"; exit 1; }

# The target is named so that build scripts are not instrumented.
RUSTFLAGS="-Cprofile-generate=$folder/raw" cargo build --profile dist --locked -p overlane --target "$target" --target-dir "$folder/generate"
python3 benches/compare "$folder/generate/$target/dist/overlane" --quick
"$profdata" merge -o "$folder/merged.profdata" "$folder/raw"
RUSTFLAGS="-Cprofile-use=$folder/merged.profdata" cargo build --profile dist --locked -p overlane --target "$target" --target-dir "$folder/use"
echo "$folder/use/$target/dist/overlane"
