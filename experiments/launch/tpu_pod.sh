#!/usr/bin/env bash
# Trains on one slice of Cloud TPUs, single host or pod, from your own machine.
#
#   export TPU_NAME=my-slice ZONE=us-east5-b
#   experiments/launch/tpu_pod.sh install
#   experiments/launch/tpu_pod.sh start configs/mar_l.py gs://bucket/run \
#     [--config.KEY=VALUE ...]
#   experiments/launch/tpu_pod.sh status     # is it running; the newest lines
#   experiments/launch/tpu_pod.sh stop       # save the state, then end
#
# TPU_NAME and ZONE must be set; PROJECT if it is not gcloud's default. The same
# `start` resumes. Training does not need the connection; each worker writes
# ~/marjax/train.log. The workers find each other through their metadata.
# Not run on a real slice yet; gcloud's syntax is that of its 2026 reference.
set -euo pipefail

: "${TPU_NAME:?"set TPU_NAME to the name of the slice"}"
: "${ZONE:?"set ZONE to the zone of the slice, as us-east5-b"}"
target=("$TPU_NAME" "--zone=$ZONE" --worker=all)
if [ -n "${PROJECT:-}" ]; then
  target+=("--project=$PROJECT")
fi

# Of the one that `start` noted, unless its number is another program's by now.
PROCESS="--pidfile train.pid --full 'marjax train'"
IS_RUNNING="test -e train.pid && pgrep $PROCESS >/dev/null"

# Runs one line of shell on every worker.
everywhere() {
  gcloud compute tpus tpu-vm ssh "${target[@]}" --command "$1"
}

# What is committed here, and an interpreter: the VM's own may be too old.
install() {
  local archive
  archive=$(mktemp -d)/marjax.tar.gz
  git -C "$(dirname "$0")/../.." archive --output "$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:marjax.tar.gz" \
    "${target[@]:1}"
  rm -r "$(dirname "$archive")"
  everywhere "set -e; mkdir -p marjax; tar xzf marjax.tar.gz -C marjax;\
 cd marjax; python3 -m pip install --quiet --user uv;\
 test -d .venv || python3 -m uv venv --python 3.12 .venv;\
 python3 -m uv pip install --python .venv --editable '.[tpu,gcs]'"
}

start() {
  if [ $# -lt 2 ]; then
    echo "tpu_pod.sh: expected start CONFIG WORKDIR [--config.KEY=VALUE ...]." \
      >&2
    exit 2
  fi
  local config=$1 workdir=$2 command
  shift 2
  command=$(printf "%q " .venv/bin/marjax train --config "$config" \
    --workdir "$workdir" "$@")
  everywhere "set -e; cd marjax; if $IS_RUNNING;\
 then echo \"\$(hostname): running already; stop it first\" >&2; exit 1; fi;\
 nohup $command>>train.log 2>&1 </dev/null & echo \$! >train.pid"
}

status() {
  everywhere "cd marjax; if $IS_RUNNING; then echo \"\$(hostname): running\";\
 else echo \"\$(hostname): not running\"; fi; tail -n 3 train.log"
}

stop() {
  everywhere "cd marjax; pkill -TERM $PROCESS"
}

case "${1:-}" in
  install | start | status | stop) "$@" ;;
  *)
    echo "tpu_pod.sh: expected install, start, status or stop." >&2
    exit 2
    ;;
esac
