#!/usr/bin/env bash
# Shape an interface to the uplink rate that the round granted (a node's radio.command). Needs the right to run tc.
#   radio.command="/opt/fedlodrop/deploy/hooks/tc.sh eth0"
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 INTERFACE" >&2; exit 2; }
rate=$(printf '%.0f' "${FEDLODROP_UPLINK_RATE_BPS:?called without a grant}")
exec tc qdisc replace dev "$1" root tbf rate "${rate}bit" burst 32kbit latency 400ms
