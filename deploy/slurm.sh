#!/bin/bash
# A sweep on the nodes of one SLURM allocation: starts Ray on them, works until the time is nearly over, saves, and asks
# SLURM for the next turn, which goes on where this one stopped.
#
#   sbatch --nodes=4 deploy/slurm.sh NAME [overrides]
#
# Needs the same lorasweep[cluster] on every node (a venv on the shared file system, or modules), and a shared home.
# Addresses and passwords: `NAME=value` lines in ~/lorasweep.env, mode 600 (docs/scale.md), among them
# LORASWEEP_TRACKING_URI, LORASWEEP_STUDIES and LORASWEEP_FILES for tracking=server.
#
#   LORASWEEP_ENV      that file, if elsewhere
#   LORASWEEP_WORKERS  workers in all; default: one for each GPU of the allocation, without GPUs one a node
#   LORASWEEP_HEAD_IP  the first node's address, where its first one is not that of the fast network
#
#SBATCH --job-name=lorasweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
# Ten minutes before the end this script alone is told, so that workers save while their Ray still lives. What SLURM ends
# all at once (scancel, preemption) goes on from its last checkpoint: train.checkpoint_every_seconds.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
# a node that dies takes its own trials along, not the job: others go on with them
#SBATCH --no-kill
#SBATCH --output=lorasweep-%j.log
set -euo pipefail

sweep=${1:?usage: sbatch deploy/slurm.sh NAME [overrides]}
shift
say() { printf 'slurm.sh: %s\n' "$*" >&2; }

settings=${LORASWEEP_ENV:-$HOME/lorasweep.env}
if [[ -f $settings ]]; then
  if [[ $(stat -c %a "$settings") != ?00 ]]; then
    say "$settings holds passwords and others may read it; chmod 600 $settings"
    exit 2
  fi
  set -a
  # shellcheck source=/dev/null
  . "$settings"
  set +a
fi

# Only this job's processes may use its Ray: the nodes' network is everybody's.
private=$HOME/.lorasweep/slurm-$SLURM_JOB_ID
(
  umask 077
  mkdir -p "$private"
  [[ -s $private/token ]] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$private/token"
)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
others=$(( ${#nodes[@]} - 1 ))
ip=${LORASWEEP_HEAD_IP:-$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk '{print $1}')}
port=$(( 20000 + SLURM_JOB_ID % 10000 ))  # two jobs may meet on a node
address=$ip:$port
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
export SRUN_CPUS_PER_TASK=$cpus  # srun does not take over what sbatch was told
gpus=${SLURM_GPUS_ON_NODE:-0}
say "turn $(( ${SLURM_RESTART_COUNT:-0} + 1 )) of job $SLURM_JOB_ID: ${#nodes[@]} nodes, $gpus GPUs and $cpus cores each"

rays=()
start_ray() {  # start_ray SRUN-WORDS -- RAY-WORDS
  local where=()
  while [[ $1 != -- ]]; do where+=("$1"); shift; done
  shift
  srun --overlap "${where[@]}" ray start "$@" --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block \
    >> "$private/ray.log" 2>&1 &
  rays+=($!)
}
worker=""
left=""
# shellcheck disable=SC2317  # called by the traps
save_and_leave() {  # lorasweep saves on SIGTERM and says so with exit code 130
  left=$1
  if [[ -n $worker ]]; then
    say "$1: saving"
    kill -TERM "$worker" 2> /dev/null || true
  fi
}
# shellcheck disable=SC2317
clean_up() {
  trap - EXIT
  for ray in "${rays[@]}"; do kill -TERM "$ray" 2> /dev/null || true; done
  wait "${rays[@]}" 2> /dev/null || true
}
trap clean_up EXIT
trap 'save_and_leave "time is nearly over"' USR1
trap 'save_and_leave "stopped by SLURM"' TERM INT

start_ray --nodes=1 --ntasks=1 --nodelist="$head" -- \
  --head --node-ip-address="$ip" --port="$port" --include-dashboard=false --temp-dir="/tmp/ray-$SLURM_JOB_ID"
for attempt in {1..60}; do
  [[ -n $left ]] && break
  ray health-check --address "$address" > /dev/null 2>&1 && break
  if [[ $attempt == 60 ]] || ! kill -0 "${rays[0]}" 2> /dev/null; then
    say "Ray did not start on $head; the end of $private/ray.log:"
    tail -n 20 "$private/ray.log" >&2
    exit 1
  fi
  sleep 1
done
if (( others > 0 )) && [[ -z $left ]]; then
  start_ray --nodes="$others" --ntasks="$others" --exclude="$head" -- --address="$address"
fi

workers=${LORASWEEP_WORKERS:-$(( gpus > 0 ? gpus * ${#nodes[@]} : ${#nodes[@]} ))}
share=(launcher.cpus="$(( gpus > 0 ? cpus / gpus : cpus ))" launcher.gpus="$(( gpus > 0 ? 1 : 0 ))")
if [[ -z $left ]]; then
  lorasweep sweep "$sweep" launcher=ray launcher.address="$address" launcher.ship=false \
    launcher.workers="$workers" "${share[@]}" "$@" &
  worker=$!
  [[ -z $left ]] || kill -TERM "$worker" 2> /dev/null || true  # the signal that came between these two lines
fi
code=130
while [[ -n $worker ]]; do  # a trapped signal ends `wait` early
  code=0
  wait "$worker" || code=$?
  kill -0 "$worker" 2> /dev/null || break
done
[[ -z $left || $code != 143 ]] || code=130  # ended before it could listen: its checkpoints are as they were

if [[ $left == "time is nearly over" && $code == 130 ]]; then
  clean_up
  say "saved; asking SLURM for the next turn"
  exec scontrol requeue "$SLURM_JOB_ID"
fi
[[ $code == 130 ]] || rm -rf "$private"
say "lorasweep ended with exit code $code"
exit "$code"
