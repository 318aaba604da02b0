#!/usr/bin/env bash
# The sweep '@NAME@' as a SLURM job, on a Ray cluster that starts and ends with it.
# Written by 'sweeps slurm'; docs/cluster.md explains it.
#
#   sbatch @SCRIPT@            submits it; when it has ended, the same continues the sweep
#   sbatch --nodes=8 @SCRIPT@  options given here override those below
#
@SBATCH@
set -euo pipefail

cd @FOLDER@
@SETUP@
export SWEEPS_STORAGE=@STORAGE@

# Ray's own files on each node: in /tmp, as the paths of its sockets may have 107 characters only,
# under a name that nobody else can foresee, and take.
export scratch
scratch=/tmp/sweep-$SLURM_JOB_ID-$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')
# What Ray says is beside what the sweep says.
ray_log=$SLURM_SUBMIT_DIR/$SLURM_JOB_NAME-$SLURM_JOB_ID.ray.log
# Jobs that share a node have different ports. All other ports are any that are free.
port=$((20000 + SLURM_JOB_ID % 5000 * 2))
# This is the first node. Its address is the one that SLURM itself knows it by.
node=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
host=$(getent ahostsv4 "$node" | awk 'NR == 1 { print $1 }')
: "${host:?no address for the node $node}"

# Who reaches a Ray cluster may run anything on it; this one obeys only who knows a secret of this
# job. The environment carries it to the other nodes, no command line shows it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # the sweep has ended when Ray is told to
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')

# SLURM tells this script that time is up, the script tells the sweep: it stops, to be continued.
current= stopping=
trap 'stopping=1; if [ "$current" ]; then kill -TERM "$current" || true; fi' TERM INT

running() { kill -0 "$1" 2>/dev/null; }

attend() { # a command in the background, as the shell hears of signals between commands only
  if [ "$stopping" ]; then return 143; fi
  "$@" <&0 &
  current=$!
  while running "$current"; do
    running "$head" || kill -KILL "$current" # it would wait for a cluster that is gone
    sleep 1 &
    wait "$!" || true
  done
  local status=0
  wait "$current" || status=$?
  current=
  return "$status"
}

teardown() { # on every way out
  local status=$?
  trap '' TERM INT
  kill ${head:+"$head"} || true
  if [ "${workers:-}" ]; then scancel --signal=TERM "$SLURM_JOB_ID.0" || true; fi
  for process in ${workers:+"$workers"} ${head:+"$head"}; do
    timeout 30 tail --pid="$process" -f /dev/null || kill -KILL "$process" || true
  done
  rm -rf "$scratch" || true
  exit "$status"
} 2>>"$ray_log"
trap teardown EXIT

options=(
  --block --log-color=false
  --num-cpus="$SLURM_CPUS_PER_TASK" --object-store-memory=134217728
  --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0
)
# Of this job's run before it was requeued. What others have put there is not ours to remove.
rm -rf /tmp/sweep-"$SLURM_JOB_ID"-* 2>>"$ray_log" || true
ray start --head --node-ip-address="$host" --port="$port" --ray-client-server-port=$((port + 1)) \
  --include-dashboard=false --temp-dir="$scratch" "${options[@]}" &>>"$ray_log" &
head=$!

others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
  # The other nodes outlive each other, and come back when their Ray dies.
  srun --nodes="$others" --ntasks="$others" --relative=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    --no-kill --kill-on-bad-exit=0 --wait=0 bash -c '
      trap "stopping=1" TERM
      until [ "${stopping:-}" ]; do "$@" || sleep 5; done
      rm -rf "$scratch"' node \
    ray start --address="$host:$port" "${options[@]}" &>>"$ray_log" &
  workers=$!
fi

attend python - "$host" "$port" "$SLURM_JOB_NUM_NODES" @WAIT_SECONDS@ "$ray_log" <<'END'
"""Waits until all nodes have joined; those that are late may join the running sweep."""
import logging, socket, sys, time
import ray

host, port, nodes, seconds = sys.argv[1], *map(int, sys.argv[2:5])
until = time.monotonic() + seconds
while True:
    try:
        socket.create_connection((host, port), timeout=5).close()
        break
    except OSError:
        if time.monotonic() > until:
            sys.exit(f"error: no Ray cluster after {seconds} s\nhint: see {sys.argv[5]}")
        time.sleep(1)
ray.init(address=f"{host}:{port}", logging_level=logging.ERROR, log_to_driver=False)
while (joined := sum(node["Alive"] for node in ray.nodes())) < nodes and time.monotonic() < until:
    time.sleep(1)
print(f"{joined} of {nodes} nodes have joined", flush=True)
END

attend @COMMAND@ --address "$host:$port"
