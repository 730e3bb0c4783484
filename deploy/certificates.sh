#!/usr/bin/env bash
# Create a certificate authority and the SuperLink's certificate.
#   deploy/certificates.sh FOLDER HOST...        e.g. deploy/certificates.sh secrets localhost 127.0.0.1
# FOLDER/ca.crt goes to every node; FOLDER/server.key stays on the SuperLink; keep FOLDER/ca.key off line.
# Called again, it renews the SuperLink's certificate (365 days) by the same authority (825 days), which nodes trust already.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 FOLDER HOST... (names and addresses of the SuperLink)" >&2; exit 2; }
folder=$1; shift
umask 077
mkdir -p "$folder"
if [ -e "$folder/ca.crt" ] && [ ! -e "$folder/ca.key" ]; then
  echo "$0: $folder/ca.crt is there without its key; put ca.key back, or nodes that trust it would lose the server" >&2; exit 2
fi
names=
for host in "$@"; do
  case $host in *[!0-9.]*) kind=DNS ;; *) kind=IP ;; esac
  case $host in *:*) kind=IP ;; esac
  names="${names:+$names,}$kind:$host"
done
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out "$1"; }
[ -e "$folder/ca.key" ] || key "$folder/ca.key"
[ -e "$folder/ca.crt" ] || openssl req -new -x509 -key "$folder/ca.key" -sha256 -subj "/O=fedlodrop/CN=fedlodrop CA" -days 825 \
  -out "$folder/ca.crt" -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
key "$folder/new.key"
openssl req -new -key "$folder/new.key" -subj "/O=fedlodrop/CN=$1" -out "$folder/server.csr"
printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth\n' \
  "$names" > "$folder/server.ext"
openssl x509 -req -in "$folder/server.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -days 365 -sha256 \
  -extfile "$folder/server.ext" -out "$folder/new.pem" 2>/dev/null
mv "$folder/new.key" "$folder/server.key"; mv "$folder/new.pem" "$folder/server.pem"
rm "$folder/server.csr" "$folder/server.ext"
chmod 644 "$folder/ca.crt" "$folder/server.pem"
echo "certificate authority and certificate for $names in $folder"
