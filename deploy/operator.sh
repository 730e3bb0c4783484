#!/usr/bin/env bash
# Write the connection that `flwr` uses, and register the public keys of the SuperNodes.
#   deploy/operator.sh SECRETS HOME SUPERLINK [NAME...]     e.g. deploy/operator.sh secrets operator 127.0.0.1:9093 node-0 node-1
# Afterwards: export FLWR_HOME=HOME; flwr run . deploy --stream
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 SECRETS HOME SUPERLINK [NAME...]" >&2; exit 2; }
. "$(dirname "$0")/environment.sh"
secrets=$(cd "$1" && pwd); mkdir -p "$2"; home=$(cd "$2" && pwd); superlink=$3; shift 3
printf '[superlink]\ndefault = "deploy"\n\n[superlink.deploy]\naddress = "%s"\nroot-certificates = "%s/ca.crt"\n' \
  "$superlink" "$secrets" > "$home/config.toml"
export FLWR_HOME=$home
"$python" -P "$here/check.py" operator "$secrets" "$superlink"
for name in "$@"; do
  if said=$(flwr supernode register "$secrets/$name.pub" deploy --name "$name" 2>&1); then
    echo "$said"
  elif [[ $said == *"already in use"* ]]; then
    echo "$name is registered already"
  else
    echo "$said" >&2; exit 1
  fi
done
