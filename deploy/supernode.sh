#!/usr/bin/env bash
# Start one SuperNode with its own key, data and limits.
#   deploy/supernode.sh SECRETS NAME STATE SUPERLINK PORT 'KEY=VALUE ...'
#   e.g. deploy/supernode.sh secrets node-0 state/node-0 127.0.0.1:9093 9100 \
#          'partition-id=0 task.train_file="/data/node-0.tsv" max-tx-power-w=0.1'
# SECRETS: folder with ca.crt and the key NAME. PORT: a free local port for the processes of this node.
# Keys: partition-id (required), task.train_file, radio.command, and any fact of adapter/protocol.py. deploy/check.py checks all.
set -euo pipefail
[ $# -eq 6 ] || { echo "usage: $0 SECRETS NAME STATE SUPERLINK PORT 'KEY=VALUE ...'" >&2; exit 2; }
. "$(dirname "$0")/environment.sh"
secrets=$(cd "$1" && pwd); mkdir -p "$3"; state=$(cd "$3" && pwd)
export FLWR_HOME=$state FEDLODROP_FILES=$PWD
"$python" -P "$here/check.py" supernode "$secrets" "$2" "$state" "$4" "$5" "$6"
cd "$state"
exec flower-supernode --superlink "$4" --root-certificates "$secrets/ca.crt" --auth-supernode-private-key "$secrets/$2" \
  --port "$5" --node-config "$6"
