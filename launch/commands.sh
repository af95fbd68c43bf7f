# shellcheck shell=bash disable=SC2034 # the variables are for the scripts
# Sourced by the scripts in this folder: reading flags, running or printing commands, quoting, complaining.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

COMMAND='' # what the script is to do
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=
TRAINING=()

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 2
}

# quoted ARG…: one line that a POSIX shell reads back as the same arguments.
quoted() {
  local argument line="" quote="'" escaped="'\\''"
  for argument; do
    if [[ ! $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      argument="$quote${argument//"$quote"/"$escaped"}$quote"
    fi
    line+=" $argument"
  done
  printf '%s' "${line# }"
}

# run COMMAND ARG…: runs it; with --dry_run prints it instead.
run() {
  if [[ $DRY_RUN ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# need PROGRAM HINT: fails with the hint if the program is not there. A dry run needs none.
need() {
  [[ $DRY_RUN ]] || command -v "$1" >/dev/null || fail "$1 is not installed, or not on PATH. $2"
}

# pause SECONDS: between two looks at something that takes its time.
pause() { run sleep "$1"; }

# given FLAG…: fails unless each of these flags has a value.
given() {
  local flag
  for flag; do
    [[ ${!flag} ]] || fail "--$flag=… is missing; $0 --help explains it"
  done
}

# shared_run_dir: fails unless the training arguments name a run directory by its whole path, or in a bucket.
shared_run_dir() {
  local argument
  for argument in "${TRAINING[@]}"; do
    [[ $argument == --run_dir=/* || $argument == --run_dir=gs://* ]] && return
  done
  fail "the training needs --run_dir=/… or gs://… (after --), a place that all workers see and that outlives them; found:" \
    "$(quoted "${TRAINING[@]}")"
}

# words_with_help: the script's opening comment, which is its help.
words_with_help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

# parse COMMAND ARG…: sets COMMAND, the variables named in FLAGS (--name=value), the arrays named in LISTS (may be repeated), the
# variables named in SWITCHES (no value), and TRAINING (all after --).
FLAGS=() LISTS=() SWITCHES=()
parse() {
  local _flag
  case ${1:-} in
    '') fail "no command is given; $0 --help lists them" ;;
    --help | -h) ;;
    -*) fail "the command comes first, then flags; found $1. $0 --help lists the commands" ;;
    *)
      COMMAND=$1
      shift
      ;;
  esac
  while (($#)); do
    _flag=${1#--}
    _flag=${_flag%%=*}
    case $1 in
      --help | -h)
        words_with_help
        exit 0
        ;;
      --)
        shift
        TRAINING=("$@")
        break
        ;;
      --dry_run) DRY_RUN=1 ;;
      --*=*)
        if [[ " ${FLAGS[*]} " == *" $_flag "* ]]; then
          printf -v "$_flag" '%s' "${1#*=}"
        elif [[ " ${LISTS[*]} " == *" $_flag "* ]]; then
          local -n _list=$_flag
          _list+=("${1#*=}")
          unset -n _list
        else
          fail "unknown flag $1; known are ${FLAGS[*]} ${LISTS[*]}, and what is meant for the training stands after --"
        fi
        ;;
      --*)
        [[ " ${SWITCHES[*]} " == *" $_flag "* ]] || fail "unknown flag $1, or its value is missing: --$_flag=VALUE"
        printf -v "$_flag" 1
        ;;
      *) fail "expected a flag, found $1; what is meant for the training stands after --" ;;
    esac
    shift
  done
}
