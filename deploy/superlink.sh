#!/usr/bin/env bash
# Start the SuperLink: TLS, only registered SuperNodes, state in a SQLite file.
#   deploy/superlink.sh SECRETS STATE [HOST [PORT]]     e.g. deploy/superlink.sh secrets state 127.0.0.1 9093
# SECRETS: folder with ca.crt, server.pem, server.key. STATE: folder for the database, the log and installed apps.
# FEDLODROP_RESULTS, if set, is the folder below which every run must write (default: STATE/results).
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SECRETS STATE [HOST [PORT]]" >&2; exit 2; }
. "$(dirname "$0")/environment.sh"
secrets=$(cd "$1" && pwd); mkdir -p "$2"; state=$(cd "$2" && pwd); host=${3:-127.0.0.1}; port=${4:-9093}
export FLWR_HOME=$state FEDLODROP_FILES=$PWD FEDLODROP_RESULTS=${FEDLODROP_RESULTS:-$state/results}
mkdir -p "$FEDLODROP_RESULTS"
"$python" -P "$here/check.py" superlink "$secrets" "$state" "$host" "$port"
cd "$state"
exec flower-superlink --host "$host" --port "$port" --ssl-ca-certfile "$secrets/ca.crt" --ssl-certfile "$secrets/server.pem" \
  --ssl-keyfile "$secrets/server.key" --enable-supernode-auth --database "$state/state.db" \
  --disable-runtime-dependency-installation
