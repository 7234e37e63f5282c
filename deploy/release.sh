#!/usr/bin/env bash
# The files of a release, from the binaries of both architectures: with checksums, the SBOM, an install.sh that knows where it is
# from, and what the changelog says of it.
#
#   deploy/release.sh BUILT SBOM OWNER/REPOSITORY vX.Y.Z OUT
set -euo pipefail
[ $# = 5 ] || { echo "usage: deploy/release.sh BUILT SBOM OWNER/REPOSITORY vX.Y.Z OUT" >&2; exit 2; }
built=$1 sbom=$2 repository=$3 version=$4 out=$5
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$out"
mkdir -p "$out/files"
for machine in x86_64 aarch64; do
    install -m 755 "$built/overlane-$machine-linux" "$out/files/"
done
cp "$sbom" "$out/files/overlane.cdx.json"
sed "s|@repository@|$repository|; s|@version@|$version|" "$here/install.sh" > "$out/files/install.sh"
(cd "$out/files" && sha256sum -- * > ../SHA256SUMS && mv ../SHA256SUMS .)
{
    echo '```sh'
    echo "curl -fsSL https://github.com/$repository/releases/download/$version/install.sh | sh"
    echo '```'
    echo
    # What is under this version's heading, else under the one of what is to come.
    awk -v version="${version#v}" '
        function named(heading, words, n) { n = split(heading, words, /[ ()]+/); while (n) if (words[n--] == version) return 1 }
        /^## / { if (taken) exit; if (named($0)) { taken = 1; next } }
        taken' "$here/../CHANGELOG.md"
} > "$out/notes.md"
grep -q '^- ' "$out/notes.md" || { echo "CHANGELOG.md says nothing of ${version#v}" >&2; exit 1; }
