#!/bin/sh
# Installs a release of Overlane: downloads the binary of this machine, and refuses it unless its checksum is the release's.
#
#   curl -fsSL https://github.com/OWNER/overlane/releases/latest/download/install.sh | sh
#
# OVERLANE_VERSION (v0.1.0; the newest by default), OVERLANE_INSTALL_TO (~/.local/bin), OVERLANE_REPOSITORY (OWNER/overlane; the
# copy that is released knows it), OVERLANE_DOWNLOAD (where the release's files are, in place of GitHub).
set -eu

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

main() {
    repository=${OVERLANE_REPOSITORY:-@repository@}
    version=${OVERLANE_VERSION:-@version@}
    case $version in @*) version= ;; esac
    if [ -n "${OVERLANE_DOWNLOAD:-}" ]; then
        from=$OVERLANE_DOWNLOAD
    else
        case $repository in @*) fail "whose release? Set OVERLANE_REPOSITORY=OWNER/overlane" ;; esac
        from=https://github.com/$repository/releases/${version:+download/$version}
        [ -n "$version" ] || from=${from}latest/download
    fi
    to=${OVERLANE_INSTALL_TO:-$HOME/.local/bin}

    [ "$(uname -s)" = Linux ] || fail "there are binaries for Linux; elsewhere: cargo install --locked --path proxy"
    case $(uname -m) in
        x86_64 | amd64) machine=x86_64 ;;
        aarch64 | arm64) machine=aarch64 ;;
        *) fail "there are binaries for x86_64 and aarch64, and this is $(uname -m): cargo install --locked --path proxy" ;;
    esac
    file=overlane-$machine-linux

    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for name in SHA256SUMS "$file"; do
        curl -fsSL --retry 3 -o "$work/$name" "$from/$name" || fail "$from/$name cannot be downloaded"
    done
    (cd "$work" && grep " [ *]\{0,1\}$file\$" SHA256SUMS > "$file.sum") || fail "SHA256SUMS does not name $file"
    (cd "$work" && sha256sum --check --status "$file.sum") || fail "$file does not have the checksum of SHA256SUMS; nothing is installed"
    chmod 755 "$work/$file"
    "$work/$file" --version > "$work/version" || fail "$file does not run here (glibc 2.36 or newer is needed)"
    mkdir -p "$to"
    # Whole or not at all, also where one of it runs.
    mv "$work/$file" "$to/.overlane.new" && mv "$to/.overlane.new" "$to/overlane"
    echo "$(cat "$work/version") is $to/overlane"
    case :$PATH: in *":$to:"*) ;; *) echo "$to is not on the PATH" ;; esac
}

# At the end, so that a download that was cut runs nothing.
main
