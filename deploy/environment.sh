# Sourced by the other scripts: the tools of this checkout's environment, no second installation, nothing sent anywhere.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${FEDLODROP_BIN:-}" ] && [ -x "$here/../.venv/bin/flower-superlink" ]; then FEDLODROP_BIN=$here/../.venv/bin; fi
[ -z "${FEDLODROP_BIN:-}" ] || export PATH="$FEDLODROP_BIN:$PATH"
flower=$(command -v flower-superlink) || {
  echo "$0: flower-superlink is not installed here; run make setup, or set FEDLODROP_BIN to the folder it is in" >&2; exit 2
}
python=$(dirname "$flower")/python
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_TELEMETRY_ENABLED=0
export RAY_USAGE_STATS_ENABLED=0 TOKENIZERS_PARALLELISM=false
