#!/usr/bin/env bash
# What sbatch runs, on a job's first node: the command in its arguments, as each of the job's tasks.
#
# Exit code 75 is the training's word that it was preempted and has saved: the job is queued again, unless stop has
# forbidden that. (sbatch runs a copy of this file, so it can read none of those beside it.)
set -uo pipefail

# SIGTERM is for the tasks, which have it from SLURM; this script must live to see how they end.
trap : TERM
echo "== $(date '+%Y-%m-%d %H:%M:%S'): job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"
# srun does not take this from sbatch by itself.
[[ ! ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=0 "$@"
code=$?
echo "== $(date '+%Y-%m-%d %H:%M:%S'): exit code $code"
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID" || echo "not queued again: that was forbidden, as launch/slurm.sh stop does"
fi
exit "$code"
