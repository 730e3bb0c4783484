#!/usr/bin/env bash
# Create one key pair per SuperNode (elliptic curve, as Flower wants them).
#   deploy/node_keys.sh FOLDER NAME...           e.g. deploy/node_keys.sh secrets node-0 node-1 node-2
# FOLDER/NAME goes to that node alone; FOLDER/NAME.pub is registered with the SuperLink.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 FOLDER NAME..." >&2; exit 2; }
folder=$1; shift
umask 077
mkdir -p "$folder"
for name in "$@"; do
  [ ! -e "$folder/$name" ] || { echo "$0: $folder/$name exists already" >&2; exit 2; }
  ssh-keygen -q -t ecdsa -b 384 -N "" -C "$name" -f "$folder/$name"
done
echo "keys of $* in $folder"
