#!/bin/sh
# Sends the TCP connections that leave this network namespace to a sidecar's outbound listener, which runs with
# `--outbound 127.0.0.1:PORT --intercept`. For an init container or a unit's ExecStartPre=; needs CAP_NET_ADMIN.
#
#   intercept.sh up --port 7490 [--uid 1337] [--mark 1337] [--except-ports 22,53] [--except 10.0.0.0/8,fd00::/8]
#   intercept.sh down
#   intercept.sh show
#
# The sidecar's own connections are told by its user (--uid) or by the mark that it sets (--mark, the same as its
# --mark): without one of them they would come back to it. Loopback and link-local addresses are never intercepted.
# nftables where it is there, else iptables.
set -eu

TABLE=overlane
CHAIN=OVERLANE

usage() {
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

die() {
    echo "intercept.sh: $1" >&2
    exit 1
}

# The elements of a list with commas that have, or have not, a colon: addresses of IPv6, of IPv4.
of_family() {
    echo "$1" | tr ',' '\n' | { [ "$2" = 6 ] && grep ':' || grep -v ':'; } 2>/dev/null | grep . | paste -sd, - || true
}

nft_rules() {
    echo "table inet $TABLE {"
    echo "  chain output {"
    echo "    type nat hook output priority -100; policy accept;"
    [ -z "$uid" ] || echo "    meta skuid $uid return"
    [ -z "$mark" ] || echo "    meta mark $mark return"
    echo "    ip daddr { 127.0.0.0/8, 169.254.0.0/16 } return"
    echo "    ip6 daddr { ::1, fe80::/10 } return"
    four=$(of_family "$except" 4)
    six=$(of_family "$except" 6)
    [ -z "$four" ] || echo "    ip daddr { $four } return"
    [ -z "$six" ] || echo "    ip6 daddr { $six } return"
    [ -z "$ports" ] || echo "    tcp dport { $ports } return"
    echo "    meta l4proto tcp redirect to :$port"
    echo "  }"
    echo "}"
}

# One family's rules by iptables or ip6tables.
iptables_rules() {
    tables=$1
    family=$2
    "$tables" -t nat -N "$CHAIN"
    [ -z "$uid" ] || "$tables" -t nat -A "$CHAIN" -m owner --uid-owner "$uid" -j RETURN
    [ -z "$mark" ] || "$tables" -t nat -A "$CHAIN" -m mark --mark "$mark" -j RETURN
    if [ "$family" = 4 ]; then own="127.0.0.0/8,169.254.0.0/16"; else own="::1,fe80::/10"; fi
    for addresses in "$own" "$(of_family "$except" "$family")"; do
        [ -z "$addresses" ] || "$tables" -t nat -A "$CHAIN" -d "$addresses" -j RETURN
    done
    [ -z "$ports" ] || "$tables" -t nat -A "$CHAIN" -p tcp -m multiport --dports "$ports" -j RETURN
    "$tables" -t nat -A "$CHAIN" -p tcp -j REDIRECT --to-ports "$port"
    "$tables" -t nat -A OUTPUT -p tcp -j "$CHAIN"
}

iptables_down() {
    "$1" -t nat -D OUTPUT -p tcp -j "$CHAIN" 2>/dev/null || true
    "$1" -t nat -F "$CHAIN" 2>/dev/null || true
    "$1" -t nat -X "$CHAIN" 2>/dev/null || true
}

has() {
    command -v "$1" >/dev/null 2>&1
}

up() {
    [ -n "$port" ] || die "--port is missing: the port of the sidecar's outbound listener"
    [ -n "$uid$mark" ] || die "--uid or --mark is missing: without it the sidecar's own connections come back to it"
    down
    if has nft; then
        nft_rules | nft -f -
    elif has iptables; then
        iptables_rules iptables 4
        if has ip6tables; then iptables_rules ip6tables 6; fi
    else
        die "neither nft nor iptables is here"
    fi
}

down() {
    if has nft; then nft delete table inet "$TABLE" 2>/dev/null || true; fi
    if has iptables; then iptables_down iptables; fi
    if has ip6tables; then iptables_down ip6tables; fi
}

show() {
    if has nft; then nft list table inet "$TABLE"; else iptables -t nat -S "$CHAIN"; fi
}

[ $# -ge 1 ] || usage
command=$1
shift
port='' uid='' mark='' ports='' except=''
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case $1 in
        --port) port=$2 ;;
        --uid) uid=$2 ;;
        --mark) mark=$2 ;;
        --except-ports) ports=$2 ;;
        --except) except=$2 ;;
        *) usage ;;
    esac
    shift 2
done
case $command in
    up | down | show) "$command" ;;
    *) usage ;;
esac
