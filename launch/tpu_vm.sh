#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one slice, or several that are asked for together.
#
#   launch/tpu_vm.sh run --name=NAME --type=v5litepod-16 --version=v2-alpha-tpuv5-lite --zone=ZONE \
#       [--queued] [--slices=N] [--spot] [more] -- --gin_file=FILE --run_dir=/SHARED/DIR [training flags]
#
#   run      asks for the TPU if there is none (anew if it was preempted), waits for it, installs, starts the training.
#            Again: goes on from wherever things are.
#   keep     run, and again whenever the TPU was preempted, until the training is done; it stays in the foreground
#   create   asks for the TPU and waits for it
#   install  this checkout, on all workers
#   start    the training, on all workers, detached
#   status   the TPU's state, and each worker's
#   logs     of --worker=0 (or all) of --slice=0; --lines=100; --follow
#   stop     SIGTERM: the training saves after its step and ends with exit code 75
#   delete   stops, then gives the TPU back; --force does not stop first
#
#   --name      of the TPU; of several slices, of the request, and they are NAME-0, NAME-1, …
#   --type      accelerator type, such as v5litepod-16 or v6e-64
#   --version   runtime version that goes with the type
#   --zone, --project   default: those of gcloud's configuration
#   --queued    a queued resource: waits in a queue until there is capacity
#   --slices    more than one is a queued resource too; give --queued and --slices to every command alike
#   --spot      cheaper, and may be taken away at any time
#   --create_flag=--FLAG=VALUE   one more flag of gcloud's create command (network, disks, reservation); may be repeated
#   --ssh_flag=--FLAG=VALUE      one more flag of gcloud's ssh and scp commands; may be repeated
#   --env=NAME=VALUE             set for the training; may be repeated
#   --setup=COMMAND              run on each worker before the training starts, such as one that mounts the data
#   --poll_seconds=30            between two looks at a TPU that is on its way, or at a training
#   --stop_seconds=600           how long to wait for a training that was sent SIGTERM
#   --dry_run                    prints the commands, as for a TPU that does not exist yet, and runs none
#
# docs/pods.md says more.
set -euo pipefail
source "$(dirname "$0")/commands.sh"

name='' type='' version='' zone='' project='' slices=1 setup='' poll_seconds=30 stop_seconds=600
slice=0 worker=0 lines=100
queued='' spot='' follow='' force=''
create_flag=() ssh_flag=() env=()
FLAGS=(name type version zone project slices setup poll_seconds stop_seconds slice worker lines)
LISTS=(create_flag ssh_flag env)
SWITCHES=(dry_run queued spot follow force)
parse "$@"

given name
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: expected a-z, 0-9 and -, beginning with a letter"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices: expected a number from 1"
need gcloud "It comes with the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
where=(${zone:+"--zone=$zone"} ${project:+"--project=$project"})
[[ $slices == 1 ]] || queued=1
api=(gcloud compute tpus tpu-vm)
[[ ! $queued ]] || api=(gcloud compute tpus queued-resources)
job=deltalm_jax_job # in the home directory, beside the checkout

# node I: the name of slice I. nodes: those of all.
node() { if [[ $slices == 1 ]]; then echo "$name"; else echo "$name-$1"; fi; }
nodes() {
  local i
  for ((i = 0; i < slices; i++)); do node "$i"; done
}

# state: the TPU's, or the request's; empty if there is none.
state() {
  local field=state
  [[ ! $queued ]] || field=state.state
  run "${api[@]}" list "${where[@]}" --filter="name~/$name\$" --format="value($field)"
}

ask() {
  given type version
  local flags=(--accelerator-type="$type")
  [[ ! $spot ]] || flags+=(--spot)
  if [[ ! $queued ]]; then
    flags+=(--version="$version")
  else
    flags+=(--runtime-version="$version")
    if [[ $slices == 1 ]]; then flags+=(--node-id="$name"); else flags+=(--node-count="$slices" --node-prefix="$name"); fi
  fi
  say "asking for $name"
  run "${api[@]}" create "$name" "${where[@]}" "${flags[@]}" "${create_flag[@]}"
}

give_back() {
  local flags=(--quiet)
  [[ ! $queued ]] || flags+=(--force) # the slices too
  run "${api[@]}" delete "$name" "${where[@]}" "${flags[@]}"
}

create() {
  local now asked=''
  if [[ $DRY_RUN ]]; then
    state
    ask
    state
    return
  fi
  while true; do
    now=$(state)
    case $now in
      READY | ACTIVE) return ;;
      '')
        ask
        asked=1
        continue
        ;;
      FAILED | PREEMPTED | TERMINATED | SUSPENDED)
        [[ $now != FAILED || ! $asked ]] ||
          fail "the request for $name failed; why: $(quoted "${api[@]}" describe "$name" "${where[@]}")"
        say "$name is $now: giving it back, to ask anew"
        give_back
        continue
        ;;
      STOPPED) fail "$name is STOPPED: $(quoted "${api[@]}" start "$name" "${where[@]}")" ;;
      *) say "$name is $now" ;;
    esac
    pause "$poll_seconds"
  done
}

# remote NODE WORKER ARG…: runs the command ARG… on workers of a slice, in the home directory.
remote() {
  local node=$1 worker=$2
  shift 2
  run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" "${ssh_flag[@]}" --worker="$worker" --command="$(quoted "$@")"
}

# Text for workers; nothing is replaced under a training that runs.
# shellcheck disable=SC2016
install_words='set -e
if [ -x deltalm_jax/launch/job.sh ] && deltalm_jax/launch/job.sh running "$1"; then
  echo "$(uname -n): a training is running; nothing is installed under it"
  exit
fi
mkdir -p deltalm_jax
find deltalm_jax -mindepth 1 -maxdepth 1 ! -name ".venv*" -exec rm -rf {} +
tar -xzf deltalm_jax.tar.gz -C deltalm_jax
deltalm_jax/launch/install.sh tpu'

# What git tracks, as it lies here, and new files that git does not ignore.
# shellcheck disable=SC2016
pack_words='git -C "$1" ls-files -z --cached --others --exclude-standard | tar -C "$1" --null -T - -czf "$2"'

install() {
  local node folder=''
  if [[ ! $DRY_RUN ]]; then
    folder=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf $folder" EXIT
  fi
  run bash -o pipefail -c "$pack_words" pack "$ROOT" "${folder:-/tmp}/deltalm_jax.tar.gz"
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm scp "${folder:-/tmp}/deltalm_jax.tar.gz" "$node:deltalm_jax.tar.gz" \
      "${where[@]}" "${ssh_flag[@]}" --worker=all
    remote "$node" all sh -c "$install_words" sh "$job"
  done
}

start() {
  shared_run_dir
  local node
  for node in $(nodes); do
    [[ ! $setup ]] || remote "$node" all sh -c "$setup"
    remote "$node" all deltalm_jax/launch/job.sh start "$job" \
      env "${env[@]}" deltalm_jax/launch/train.sh tpu --coordinator=auto "${TRAINING[@]}"
  done
}

status() {
  local now node
  now=$(state)
  echo "$name: ${now:-there is none}"
  [[ $DRY_RUN || $now == READY || $now == ACTIVE ]] || return 0
  for node in $(nodes); do remote "$node" all deltalm_jax/launch/job.sh status "$job"; done
}

logs() { remote "$(node "$slice")" "$worker" deltalm_jax/launch/job.sh log "$job" "$lines" ${follow:+follow}; }

stop() {
  local node failed=''
  for node in $(nodes); do
    remote "$node" all deltalm_jax/launch/job.sh stop "$job" "$stop_seconds" || failed=1
  done
  [[ ! $failed ]]
}

delete() {
  local now=READY
  if [[ $DRY_RUN ]]; then state; else now=$(state); fi
  if [[ ! $now ]]; then
    say "there is no $name"
    return
  fi
  if [[ ! $force && ($now == READY || $now == ACTIVE) ]]; then
    stop || fail "$name could not be stopped, so it is not deleted; see status and logs, or delete it with --force"
  fi
  give_back
}

keep() {
  local code outcome
  while true; do
    code=0
    "$BASH" "$0" run "$@" || code=$?
    [[ ! $DRY_RUN ]] || return "$code"
    ((code != 2)) || exit 2
    outcome=''
    if ((code == 0)); then
      while outcome=$(remote "$(node 0)" 0 deltalm_jax/launch/job.sh status "$job") && [[ $outcome == *': running'* ]]; do
        pause "$poll_seconds"
      done
    fi
    say "${outcome:-$name did not answer}"
    [[ $outcome != *'exit code 0' ]] || return 0
    pause "$poll_seconds"
    # 75 is a preemption. When another slice was taken away, this one's processes end with an error; but the TPU is not
    # whole then. When it is, the error is the training's own, and starting it again would not help.
    if [[ $outcome == *'exit code'* && $outcome != *'exit code 75' && $(state) == @(READY|ACTIVE) ]]; then
      fail "the training ended with an error; see $0 logs --name=$name --worker=all"
    fi
  done
}

case $COMMAND in
  run)
    shared_run_dir
    given type version
    create
    install
    start
    ;;
  keep) keep "${@:2}" ;;
  create | install | start | status | logs | stop | delete) "$COMMAND" ;;
  *) fail "unknown command $COMMAND; $0 --help lists them" ;;
esac
