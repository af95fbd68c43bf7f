#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: one process a GPU, or one a node.
#
#   launch/slurm.sh run --name=NAME --nodes=2 --gpus_per_node=8 --time=24:00:00 [more] -- --gin_file=FILE [training flags]
#
#   run      submits the job unless one of that name is queued or running. When its time ends or it is preempted, it saves
#            and queues itself again; to go on after stop or an error, run again
#   status   what the queue says
#   logs     the end of its output; --lines=100; --follow
#   stop     SIGTERM: the training saves after its step and ends; the job is not queued again
#
#   --name            of the job
#   --nodes, --gpus_per_node, --time   what to ask for
#   --tasks_per_node  processes on a node: as many as GPUs (the default), or 1
#   --partition, --account   if the cluster wants them
#   --sbatch_flag=--FLAG=VALUE   one more flag of sbatch (memory, constraints, quality of service); may be repeated
#   --env=NAME=VALUE  set for the training; may be repeated
#   --log=FILE        default: NAME.log in this folder; a job that goes on appends
#   --warning_seconds=120   how long before its time ends a job is sent SIGTERM
#   --stop_seconds=600      how long stop waits
#   --dry_run         prints the commands, as for a job that is not queued yet, and runs none
#
# Run it where sbatch is, in a folder that all nodes see; so must this checkout be, installed by launch/install.sh gpu.
# docs/pods.md says more.
set -euo pipefail
source "$(dirname "$0")/commands.sh"

name='' nodes=1 gpus_per_node='' time='' tasks_per_node='' partition='' account='' log='' warning_seconds=120
stop_seconds=600 poll_seconds=5 lines=100
follow=''
sbatch_flag=() env=()
FLAGS=(name nodes gpus_per_node time tasks_per_node partition account log warning_seconds stop_seconds poll_seconds lines)
LISTS=(sbatch_flag env)
SWITCHES=(dry_run follow)
parse "$@"

given name
[[ $log ]] || log=$name.log
need squeue "Run this on a login node of the cluster."

# job_state: "NUMBER STATE" of the queued or running job of that name, or nothing.
look=(squeue --user="$(id -un)" --name="$name" --noheader --format='%i %T')
job_state() { "${look[@]}"; }

run_training() {
  given gpus_per_node time
  local submit found tasks=${tasks_per_node:-$gpus_per_node} variables=("${env[@]}")
  # jax gives each process of a SLURM job one GPU, the one of its number on the node, unless it is told which.
  [[ $tasks == "$gpus_per_node" ]] || variables+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus_per_node - 1)))")
  [[ $tasks == "$gpus_per_node" || $tasks == 1 ]] ||
    fail "--tasks_per_node=$tasks: expected 1, or as many as --gpus_per_node=$gpus_per_node"
  submit=(sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$tasks" --gpus-per-node="$gpus_per_node"
    --time="$time" --signal="TERM@$warning_seconds" --requeue --open-mode=append --output="$log"
    ${partition:+"--partition=$partition"} ${account:+"--account=$account"} "${sbatch_flag[@]}"
    "$ROOT/launch/slurm_job.sh" env "${variables[@]}" "$ROOT/launch/train.sh" gpu --coordinator=auto "${TRAINING[@]}")
  if [[ $DRY_RUN ]]; then
    run "${look[@]}"
  else
    found=$(job_state)
    if [[ $found ]]; then
      say "$name is there already: job $found"
      return
    fi
  fi
  run "${submit[@]}"
}

status() {
  run squeue --user="$(id -un)" --name="$name"
}

logs() {
  run tail -n "$lines" ${follow:+-F} "$log"
}

stop() {
  local found number waited=0
  if [[ $DRY_RUN ]]; then
    run "${look[@]}"
    found='JOB RUNNING'
  else
    found=$(job_state)
  fi
  if [[ ! $found ]]; then
    say "no job $name is queued or running"
    return
  fi
  number=${found%% *}
  if [[ $found != *' RUNNING' ]]; then
    run scancel "$number" # nothing to save
    return
  fi
  # Not queued again by itself; then SIGTERM for the training, but not for the script around it.
  run scontrol update JobId="$number" Requeue=0
  run scancel --signal=TERM "$number"
  while [[ ! $DRY_RUN && $(job_state) ]]; do
    ((waited <= stop_seconds)) || fail "job $number still runs $waited seconds after SIGTERM; see $log"
    pause "$poll_seconds"
    waited=$((waited + poll_seconds))
  done
}

case $COMMAND in
  run) run_training ;;
  status | logs | stop) "$COMMAND" ;;
  *) fail "unknown command $COMMAND; $0 --help lists them" ;;
esac
