#!/usr/bin/env bash
# Holds the units against systemd's own reading of them: nothing unknown in them, and little that the process may do.
#
#     deploy/systemd/check.sh BINARY
set -euo pipefail
binary=$(realpath "$1")
cd "$(dirname "$0")"
units=$(mktemp -d)
trap 'rm -r "$units"' EXIT
cp overlane.socket "$units"
sed "s|/usr/local/bin/overlane|$binary|" overlane.service > "$units/overlane.service"
said=$(systemd-analyze verify "$units/overlane.service" "$units/overlane.socket" 2>&1) || { echo "$said"; exit 1; }
[ -z "$said" ] || { echo "$said"; exit 1; }
# Of 10 points, most of which an address in the network costs that it is there for.
systemd-analyze security --offline=true --threshold=20 --no-pager "$units/overlane.service" | tail -n 1
# What it is started with it takes.
for flag in $(grep '^ExecStart=' "$units/overlane.service" | grep -o -- ' --[a-z-]*'); do
    "$binary" run --help | grep -q -- "$flag" || { echo "overlane run has no $flag"; exit 1; }
done
