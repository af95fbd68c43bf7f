#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet.
#
#   launch/gke.sh run --name=NAME --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4 [--slices=N] \
#       [--claim=CLAIM:/shared] [more] -- --gin_file=FILE --run_dir=/shared/DIR [training flags]
#
#   run        starts the training unless it runs; again, after stop or a failure: goes on from the newest checkpoint
#   manifest   prints what run would give to kubectl
#   status     the JobSet and its pods
#   logs       of --worker=0 (or all) of --slice=0 (or all); --lines=100; --follow
#   stop       SIGTERM: the training saves after its step and ends; the JobSet stays, suspended
#   delete     stops, then removes the JobSet
#
#   --name          of the JobSet
#   --image         built from launch/Dockerfile
#   --accelerator, --topology   as the node pool's labels have them; --chips_per_host=4
#   --slices        node pools to take, each a slice
#   --spot          only nodes that may be taken away at any time
#   --claim=CLAIM:/PATH         a PersistentVolumeClaim that all pods can write; may be repeated
#   --bucket=BUCKET:/PATH       a bucket, read only; may be repeated; needs --service_account=NAME that may read it
#   --env=NAME=VALUE            set for the training; may be repeated
#   --max_restarts=100          how often JobSet starts it again, after preemptions for the most part
#   --stop_seconds=600          how long to wait for a training that was sent SIGTERM
#   --context, --namespace      default: kubectl's
#   --dry_run       prints the commands, as for a JobSet that does not exist yet, and runs none
#
# docs/pods.md says more.
set -euo pipefail
source "$(dirname "$0")/commands.sh"

name='' image='' accelerator='' topology='' chips_per_host=4 slices=1 max_restarts=100 stop_seconds=600
service_account='' context='' namespace='' slice=0 worker=0 lines=100 poll_seconds=5
spot='' follow=''
claim=() bucket=() env=()
FLAGS=(name image accelerator topology chips_per_host slices max_restarts stop_seconds service_account context namespace
  slice worker lines poll_seconds)
LISTS=(claim bucket env)
SWITCHES=(dry_run spot follow)
parse "$@"

given name
kubectl=(kubectl ${context:+"--context=$context"} ${namespace:+"--namespace=$namespace"})
of_name=jobset.sigs.k8s.io/jobset-name=$name

jobset_command() {
  given image accelerator topology
  jobset=(python3 "$ROOT/launch/jobset.py" --name="$name" --image="$image" --accelerator="$accelerator"
    --topology="$topology" --chips_per_host="$chips_per_host" --slices="$slices" --max_restarts="$max_restarts"
    --stop_seconds="$stop_seconds" ${service_account:+"--service_account=$service_account"} ${spot:+--spot}
    "${claim[@]/#/--claim=}" "${bucket[@]/#/--bucket=}" "${env[@]/#/--env=}" -- "${TRAINING[@]}")
}

# state: absent, running, suspended, Completed or Failed.
look=("${kubectl[@]}" get jobset "$name" --ignore-not-found
  --output='jsonpath=found,{.spec.suspend},{.status.terminalState}')
state() {
  local found
  found=$("${look[@]}")
  case $found in
    '') echo absent ;;
    *,Completed | *,Failed) echo "${found##*,}" ;;
    *,true,*) echo suspended ;;
    *) echo running ;;
  esac
}

run_training() {
  shared_run_dir
  jobset_command
  if [[ $DRY_RUN ]]; then
    run "${look[@]}"
    echo "$(quoted "${jobset[@]}") | $(quoted "${kubectl[@]}" create --filename=-)"
    return
  fi
  local made now
  made=$("${jobset[@]}") # first: a mistake in the flags must change nothing
  now=$(state)
  case $now in
    running)
      say "$name is running already: stop it first if it is to run otherwise"
      return
      ;;
    Completed)
      say "$name is done; to train on with other settings, delete it first"
      return
      ;;
    # What can be changed of a JobSet is little, so a new one takes its place: all that lasts is in the run directory.
    suspended | Failed) "${kubectl[@]}" delete jobset "$name" --wait ;;
  esac
  "${kubectl[@]}" create --filename=- <<<"$made"
}

status() {
  run "${kubectl[@]}" get jobset "$name" --ignore-not-found
  run "${kubectl[@]}" get pods --selector="$of_name" --output=wide
}

logs() {
  local selector=$of_name
  [[ $slice == all ]] || selector+=,jobset.sigs.k8s.io/job-index=$slice
  [[ $worker == all ]] || selector+=,batch.kubernetes.io/job-completion-index=$worker
  run "${kubectl[@]}" logs --selector="$selector" --container=train --tail="$lines" --prefix --max-log-requests=1000 \
    ${follow:+--follow}
}

# Suspending ends the pods with SIGTERM, and they have terminationGracePeriodSeconds to save.
stop() {
  local now pods waited=0
  local suspend=("${kubectl[@]}" patch jobset "$name" --type=merge --patch='{"spec":{"suspend":true}}')
  local list=("${kubectl[@]}" get pods --selector="$of_name" --field-selector=status.phase=Running --output=name)
  if [[ $DRY_RUN ]]; then
    run "${look[@]}"
    run "${suspend[@]}"
    run "${list[@]}"
    return
  fi
  now=$(state)
  if [[ $now != running ]]; then
    say "$name is $now"
    return
  fi
  "${suspend[@]}"
  while true; do
    pods=$("${list[@]}")
    [[ $pods ]] || break
    ((waited <= stop_seconds + 60)) || fail "$name still has pods $waited seconds after SIGTERM: ${pods//$'\n'/ }"
    pause "$poll_seconds"
    waited=$((waited + poll_seconds))
  done
  say "$name is suspended"
}

delete() {
  stop
  run "${kubectl[@]}" delete jobset "$name" --ignore-not-found --wait
}

case $COMMAND in
  run | status | stop | delete | logs) need kubectl "It comes with 'gcloud components install kubectl'." ;;
esac
case $COMMAND in
  run) run_training ;;
  manifest)
    jobset_command
    "${jobset[@]}"
    ;;
  status | logs | stop | delete) "$COMMAND" ;;
  *) fail "unknown command $COMMAND; $0 --help lists them" ;;
esac
