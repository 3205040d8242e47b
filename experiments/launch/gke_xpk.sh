#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that xpk made (pip install xpk).
#
#   export CLUSTER=my-cluster ZONE=us-east5-b TPU_TYPE=v6e-256
#   experiments/launch/gke_xpk.sh NAME CONFIG gs://bucket/run \
#     [--config.KEY=VALUE ...]
#
# NAME is the workload's: small letters, digits and dashes. CLUSTER, ZONE and
# TPU_TYPE must be set; PROJECT if it is not gcloud's default. SLICES (default
# 1), MAX_RESTARTS (default 100), IMAGE (default python:3.12-slim; give one that
# has marjax[tpu,gcs] inside to start sooner). The repository, as committed,
# travels in an image that xpk builds with Docker. xpk prints where the log is.
# Not run on a real cluster yet; the syntax is that of xpk 1.16.
set -euo pipefail

# In the pod, where `gke_xpk.sh in_pod COMMAND` runs COMMAND. A pod that is
# taken away makes training end with 0, which the job would count as finished:
# 42 is a code after which xpk starts the workload again.
in_pod() {
  local code=0
  "$@" &
  training=$!
  trap leave TERM
  wait "$training" || code=$?
  exit "$code"
}
leave() {
  kill -TERM "$training" 2>/dev/null || true
  wait "$training" || true
  exit 42
}

if [ "${1:-}" = in_pod ]; then
  shift
  in_pod "$@"
fi

: "${CLUSTER:?"set CLUSTER to the name of the GKE cluster"}"
: "${ZONE:?"set ZONE to the zone of the cluster, as us-east5-b"}"
: "${TPU_TYPE:?"set TPU_TYPE to the type of a slice, as v6e-256"}"
if [ $# -lt 3 ]; then
  echo "gke_xpk.sh: expected NAME CONFIG WORKDIR [--config.KEY=VALUE ...]." >&2
  exit 2
fi
name=$1 config=$2 workdir=$3
shift 3
where=("--cluster=$CLUSTER" "--zone=$ZONE")
if [ -n "${PROJECT:-}" ]; then
  where+=("--project=$PROJECT")
fi

training=$(printf "%q " marjax train --config "$config" --workdir "$workdir" \
  "$@")
# exec: the signal is sent to the shell that xpk runs this in.
command="python -m pip install --quiet --editable '.[tpu,gcs]' &&\
 exec bash experiments/launch/gke_xpk.sh in_pod $training"

sources=$(mktemp -d)
trap 'rm -r "$sources"' EXIT
git -C "$(dirname "$0")/../.." archive HEAD | tar x -C "$sources"

# 2: training lost another pod, or said what is wrong.
xpk workload create "--workload=$name" "${where[@]}" \
  "--tpu-type=$TPU_TYPE" "--num-slices=${SLICES:-1}" \
  "--base-docker-image=${IMAGE:-python:3.12-slim}" \
  "--script-dir=$sources" \
  "--max-restarts=${MAX_RESTARTS:-100}" --restart-on-exit-codes=2 \
  --termination-grace-period-seconds=120 "--command=$command"
