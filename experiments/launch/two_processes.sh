#!/usr/bin/env bash
# Trains with two processes on this machine's CPU, as two hosts would: to see
# that a config runs on several hosts before it costs anything there.
#
#   experiments/launch/two_processes.sh CONFIG WORKDIR [--config.KEY=VALUE ...]
#   experiments/launch/two_processes.sh configs/digits.py:laptop out/two
#
# DEVICES (default 4): fake devices of each process. MARJAX (default marjax):
# the command to run. SIGTERM, or Ctrl-C, lets both save their state and stop.
# The exit code is 0 only if both processes ended with 0.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "two_processes.sh: expected CONFIG WORKDIR [--config.KEY=VALUE ...]." >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${DEVICES:-4}"
port=$(python3 -c 'import socket
with socket.socket() as probe:
  probe.bind(("localhost", 0))
  print(probe.getsockname()[1])')

processes=()
is_interrupted=0
forward() {
  is_interrupted=1
  # One may have ended already.
  kill -TERM "${processes[@]}" 2>/dev/null || true
}
trap forward TERM INT

for id in 0 1; do
  "${MARJAX:-marjax}" train --config "$config" --workdir "$workdir" \
    --coordinator_address "localhost:$port" --num_processes 2 \
    --process_id "$id" "$@" > >(sed -u "s/^/[$id] /") 2>&1 &
  processes+=($!)
done

# A trapped signal ends `wait` early: then the process is waited for again.
exit_code() {
  local code
  while true; do
    is_interrupted=0 code=0
    wait "$1" || code=$?
    [ "$is_interrupted" = 1 ] || return "$code"
  done
}

failed=0
for id in 0 1; do
  exit_code "${processes[$id]}" || failed=$?
done
exit "$failed"
