#!/usr/bin/env bash
# One command that runs on this machine, whoever logs out: start, running, status, log, stop.
#
#   job.sh start DIR COMMAND ARG…   starts it unless it runs already; DIR holds its log, pid and exit code
#   job.sh running DIR              exit code 0 if it runs
#   job.sh status DIR               one line: running, ended with an exit code, or not started
#   job.sh log DIR LINES [follow]   the end of its log, each line after the host's name
#   job.sh stop DIR SECONDS         SIGTERM, then waits for its end
#
# The scripts in this folder call it on workers; it is of use by itself too.
set -euo pipefail
source "$(dirname "$0")/commands.sh"

[[ ${1:-} != --help && $# -ge 2 ]] || { words_with_help && exit 0; }
verb=$1 directory=$2
shift 2
host=$(uname -n)
need flock "It is part of util-linux, as setsid is."

# The lock is the operating system's and inherited by the command: it ends with the last of both, so none is ever stale.
running() { [[ -e $directory/lock ]] && ! flock --nonblock "$directory/lock" true; }

start() {
  if running; then
    echo "$host: running already, process $(<"$directory/pid")"
    return
  fi
  mkdir -p "$directory"
  rm -f "$directory/pid" "$directory/exit_code"
  printf '== %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$(quoted "$@")" >>"$directory/log"
  setsid "$BASH" "$0" supervise "$directory" "$@" </dev/null >>"$directory/log" 2>&1 &
  local tries
  for ((tries = 0; tries < 200; tries++)); do
    [[ ! -s $directory/pid ]] || break
    sleep 0.05
  done
  [[ -s $directory/pid ]] || fail "$host: nothing runs after 10 seconds; see $directory/log"
  echo "$host: started, process $(<"$directory/pid"); log: $directory/log"
}

supervise() {
  exec 9>"$directory/lock"
  flock --nonblock 9
  "$@" &
  echo $! >"$directory/pid"
  # A machine that shuts down sends SIGTERM to everything: it is the command's to end, ours to note how.
  local code interrupted=1
  trap 'interrupted=1' TERM HUP INT
  while [[ $interrupted ]]; do
    interrupted=
    code=0
    wait $! || code=$?
  done
  echo "$code" >"$directory/exit_code"
  exit # here, lest bash read on in a file that may be another by now
}

status() {
  if running; then
    echo "$host: running, process $(<"$directory/pid")"
  elif [[ -e $directory/exit_code ]]; then
    echo "$host: ended with exit code $(<"$directory/exit_code")"
  else
    echo "$host: not started, or the machine went down with it"
  fi
}

log() {
  [[ -e $directory/log ]] || fail "$host has no log in $directory: nothing was started there"
  local follow=()
  [[ ${2:-} != follow ]] || follow=(-F)
  tail -n "$1" "${follow[@]}" "$directory/log" | sed -u "s/^/$host: /"
}

stop() {
  if running; then
    kill -TERM "$(<"$directory/pid")" || true # it may have ended just now
    echo "$host: SIGTERM sent; a training saves after the step it is in"
    flock --timeout "$1" "$directory/lock" true || fail "$host: still running $1 seconds after SIGTERM"
  fi
  status
}

case $verb in
  start | running | supervise | status | log | stop) "$verb" "$@" ;;
  *) fail "unknown command $verb; $0 --help lists them" ;;
esac
