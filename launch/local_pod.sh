#!/usr/bin/env bash
# A pod of this machine's processors: several processes, each with several simulated devices, joined as hosts of a pod are.
# For trying a mesh before paying for one; it is no faster than one process.
#
#   launch/local_pod.sh run --processes=2 --devices=4 -- --gin_file=FILE --gin.MeshConfig.fsdp=4 [training flags]
#
#   run      starts all processes and stays, showing the first one's output; Ctrl-C and SIGTERM save and stop them all.
#            Exit code: the training's (75 when it was stopped by SIGTERM)
#   start    the same, detached
#   status   of each process
#   logs     of --worker=0 (or all); --lines=100; --follow
#   stop     SIGTERM to all, then waits
#
#   --processes=2, --devices=2   processes, and devices of each
#   --dir=runs/local_pod         each process's log, process id and exit code
#   --env=NAME=VALUE             set for the training; may be repeated
#   --stop_seconds=600           how long to wait for processes that were sent SIGTERM
#   --dry_run                    prints the commands and runs none
#
# PYTHON names another Python than this checkout's .venv/bin/python. docs/pods.md says more.
set -euo pipefail
source "$(dirname "$0")/commands.sh"

processes=2 devices=2 dir=runs/local_pod stop_seconds=600 worker=0 lines=100
follow=''
env=()
FLAGS=(processes devices dir stop_seconds worker lines)
LISTS=(env)
SWITCHES=(dry_run follow)
parse "$@"

job=$ROOT/launch/job.sh
python=${PYTHON:-$ROOT/.venv/bin/python}

workers() { if [[ $1 == all ]]; then seq 0 $((processes - 1)); else echo "$1"; fi; }

start() {
  local i port=PORT
  need "$python" "Run 'make setup' first, or name another in PYTHON."
  for i in $(workers all); do
    if [[ ! $DRY_RUN ]] && "$job" running "$dir/$i"; then
      say "a pod is running already in $dir: $("$job" status "$dir/$i")"
      return
    fi
  done
  if [[ ! $DRY_RUN ]]; then
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  fi
  for i in $(workers all); do
    run "$job" start "$dir/$i" env JAX_PLATFORMS=cpu \
      "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices" "${env[@]}" \
      "$python" -m deltalm_jax.train "${TRAINING[@]}" \
      --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i"
  done
}

status() {
  local i
  for i in $(workers all); do run "$job" status "$dir/$i"; done
}

logs() {
  local i
  [[ ! $follow || $worker != all ]] || fail "--follow shows one process: --worker=0 to $((processes - 1))"
  for i in $(workers "$worker"); do run "$job" log "$dir/$i" "$lines" ${follow:+follow}; done
}

# All at once: they end together, at the same step.
stop() {
  local i stopping=() failed=''
  for i in $(workers all); do
    run "$job" stop "$dir/$i" "$stop_seconds" &
    stopping+=($!)
  done
  for i in "${stopping[@]}"; do wait "$i" || failed=1; done
  [[ ! $failed ]]
}

# The processes are not this script's children, so it goes by what they leave.
run_training() {
  local i seen=0 code=0 ended
  [[ ! -e $dir/0/log ]] || seen=$(wc -l <"$dir/0/log")
  trap stop TERM INT
  start
  [[ ! $DRY_RUN ]] || return 0
  # In a session of its own, so that Ctrl-C leaves the last lines to be shown.
  setsid tail --pid="$(<"$dir/0/pid")" --lines="+$((seen + 1))" --follow=name "$dir/0/log" &
  for i in $(workers all); do
    while "$job" running "$dir/$i"; do sleep 0.2; done
    ended=1
    [[ ! -e $dir/$i/exit_code ]] || ended=$(<"$dir/$i/exit_code")
    ((ended <= code)) || code=$ended
  done
  wait
  return "$code"
}

case $COMMAND in
  run) run_training ;;
  start | status | logs | stop) "$COMMAND" ;;
  *) fail "unknown command $COMMAND; $0 --help lists them" ;;
esac
