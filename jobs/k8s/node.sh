#!/bin/bash
# What a pod of pretrain.yaml does: one launcher, a process a GPU; where SIGTERM comes the step in hand is committed.  The words are those of the program:
#
#    jobs/k8s/node.sh mpp/pretrain.py --config configs/mpp_b16.yaml data.shards=/data/train run_dir=/data/runs/b16
#
# Environment: SERVICE, NODES, PROCESSES_PER_NODE (pretrain.yaml), JOB_COMPLETION_INDEX (Kubernetes).
# Exit status: 0 finished; 75 start it again, it does not count as a failure (asked to stop, ended by another pod, or failed after a commit of its own);
# anything else is a failure that has got nothing done.
set -u
program=$1 again=75 port=29500
ranks="[${program:0:1}]${program:1} --local_rank" # as a pattern that does not find itself
hostfile=$(mktemp)
trap 'rm -f "$hostfile"' EXIT

asked=0
trap asked=1 TERM

# A pod has a name once it runs.  So the ranks begin when all pods do, however long a cluster takes to find room for the last one.
for ((node = 0; node < NODES; node++)); do
  until getent hosts "$SERVICE-$node.$SERVICE" >/dev/null; do
    [ "$asked" = 0 ] || exit "$again"
    sleep 1
  done
  echo "$SERVICE-$node.$SERVICE slots=$PROCESSES_PER_NODE" >>"$hostfile"
done

deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$JOB_COMPLETION_INDEX" --master_addr "$SERVICE-0.$SERVICE" --master_port "$port" "$@" &
job=$!
while kill -0 "$job" 2>/dev/null; do
  if [ "$asked" = 0 ]; then
    wait "$job"
  else # the ranks are asked, also those that only begin; not their launcher, which would kill them after half a minute
    pkill -TERM -f -- "$ranks"
    sleep 1
  fi
done
wait "$job"
status=$?
if [ "$status" = 0 ] && pgrep -f -- "$ranks" >/dev/null; then status=1; fi # a launcher that is killed itself says 0, and leaves its ranks

run_dir=$(printf '%s\n' "$@" | sed -n 's/^run_dir=//p' | tail -n 1)
if [ "$status" != 0 ] && { [ "$asked" = 1 ] || [ -n "$(find "${run_dir:-/none}" -name COMMIT.json -newer "$hostfile" -print -quit 2>/dev/null)" ]; }; then
  status=$again
fi
exit "$status"
