#!/bin/bash
# What each node of run.sbatch does: the launcher of its own processes, which needs no ssh.
#
#    srun ... node.sh IMAGE WORDS ...    IMAGE: a virtual environment in one file on a disk of this node (docs/launching.md), or nothing
set -u
image=$1
shift
launch=(--no_ssh --node_rank "$SLURM_NODEID" "$@")
trap : TERM # of a preemption or scancel comes to all processes of a node; if this one ended first, SLURM would kill the ranks before they have committed

# A launcher that is killed itself says 0, and leaves its ranks: then it has failed, and srun ends them.
ended() {
  [ "$1" = 0 ] || exit "$1"
  for rank in $(pgrep -f -- "--local_[r]ank"); do
    if grep -qz "^SLURM_JOB_ID=${SLURM_JOB_ID:-}\$" "/proc/$rank/environ"; then exit 1; fi
  done
  exit 0
}

if [ -z "$image" ]; then
  deepspeed "${launch[@]}"
  ended $?
fi

venv=$(mktemp -d "$image.XXXXXX") || exit 1
squashfuse -f "$image" "$venv" &
mounted=$!
trap 'kill "$mounted"; wait "$mounted"; rmdir "$venv"; rm -f "$image"' EXIT
until mountpoint -q "$venv"; do
  kill -0 "$mounted" || exit 1
  sleep 0.1
done
export PATH="$venv/bin:$PATH"
python "$venv/bin/deepspeed" "${launch[@]}" # not by its own first line, which names the folder in which it was installed
ended $?
