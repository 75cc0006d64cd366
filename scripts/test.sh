#!/usr/bin/env bash
# Every test: format, lints, licences, unit and integration tests beside real servers, and real
# programs on a real S3 mount. Installs what is missing first. Ends with 'N passed, N failed'.
#
#   scripts/test.sh                 all of it, with counts that fit a quarter of an hour
#   scripts/test.sh --full          the long counts
#   scripts/test.sh --only NAME     one step (NAME may be a part of its name), several times if wanted
#   scripts/test.sh --list          the steps
#
# One cargo profile (dev, with opt-level 1) serves them all. Servers and mounts end with this script,
# however it ends. A step's output stands in a log that is shown when it fails.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 2
export TRIALFS_TEST_HOME=${TRIALFS_TEST_HOME:-$HOME/.cache/trialfs-test}
export TRIALFS=${CARGO_TARGET_DIR:-$root/target}/debug/trialfs
export PATH=$TRIALFS_TEST_HOME/bin:$PATH
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} NO_COLOR=1 PYTHONDONTWRITEBYTECODE=1
python=$TRIALFS_TEST_HOME/venv/bin/python

# Step -> seconds it may take; past that it hangs, and that is a failure. In order.
steps='
install        1800
format           60
lints          1500
licences        300
build          1500
unit           1800
quickstart      120
command_line    300
needs_ray       300
needs_others    300
posix           300
budgets         300
foreign         300
credentials     300
failures        600
faults          900
limits          600
disk            300
hostile         300
kills           900
two_mounts      600
checkpoints     600
commit_rules    300
orbax_ranks     300
renames         600
tools          1200
copies          300
pjdfstest       600
fsx            1200
fio             600
stores          300
ray_runs        600
'
full_seconds_factor=6

only=()
while [ $# -gt 0 ]; do
  case $1 in
    --full) export TRIALFS_TEST_FULL=1 ;;
    --only) only+=("${2:?--only wants a name}"); shift ;;
    --list) awk 'NF { print $1 }' <<<"$steps"; exit ;;
    *) sed -n '2,12p' "$0" >&2; exit 2 ;;
  esac
  shift
done

work=$(mktemp -d "${TMPDIR:-/tmp}/trialfs-test.XXXXXX")
chmod 755 "$work" # other users enter mounts made with --allow-other
mkdir "$work/log"
export TRIALFS_TEST_DIR=$work/p # short: a socket below it has a path of at most 107 bytes
servers_pid=
step_pid=

# ---- leaving nothing behind ----------------------------------------------------------------------

mounts_left() { awk -v under="$work/" 'index($5, under) == 1 { print $5 }' /proc/self/mountinfo | sort -r; }

processes_left() { # of ours: those whose arguments name the work directory
  local p
  for p in /proc/[0-9]*; do
    [ "${p#/proc/}" != $$ ] && tr '\0' '\n' 2>/dev/null <"$p/cmdline" | grep -qF "$work/" && echo "${p#/proc/}"
  done
}

end_servers() {
  [ -n "$servers_pid" ] || return 0
  kill "$servers_pid" 2>/dev/null
  wait "$servers_pid" 2>/dev/null
  servers_pid=
}

clear_up() {
  local status=$? point pid
  trap - EXIT
  if [ -n "$step_pid" ]; then
    kill "$step_pid" 2>/dev/null
    wait "$step_pid" 2>/dev/null
  fi
  end_servers
  while read -r point; do umount -l "$point" 2>/dev/null || fusermount3 -uz "$point"; done < <(mounts_left)
  for pid in $(processes_left); do kill -9 "$pid" 2>/dev/null; done
  [ "${failed:-1}" -eq 0 ] && rm -rf --one-file-system "$work"
  exit "$status"
}
trap clear_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- the steps -----------------------------------------------------------------------------------

servers() { # started at the first step that wants them
  [ -z "$servers_pid" ] || return 0
  "$python" scripts/servers.py run "$work/servers" >"$work/log/servers" 2>&1 &
  servers_pid=$!
  until [ -e "$work/servers/env" ]; do
    if ! kill -0 "$servers_pid" 2>/dev/null; then
      cat "$work/log/servers"
      servers_pid=
      return 1
    fi
    sleep 0.1
  done
  set -a
  # shellcheck disable=SC1091
  . "$work/servers/env"
  set +a
}

step_install() { scripts/install.sh; }
step_format() { cargo fmt --all --check; }
step_lints() { cargo clippy --all-targets --locked -- -D warnings; }
step_licences() { cargo deny --locked check licenses bans sources; }
step_build() { cargo build --all-targets --locked; }
step_unit() { cargo nextest run --locked --no-fail-fast; }
step_quickstart() { scripts/quickstart.sh && scripts/quickstart.sh; } # and again: it can be run twice

run_step() { # name seconds: becomes the step under its limit, which ends as one with all it started
  local name=$1 seconds=$2
  if declare -F "step_$name" >/dev/null; then
    export -f "step_$name"
    exec timeout --kill-after=15 "$seconds" bash -c "set -euo pipefail; step_$name"
  else
    exec timeout --kill-after=15 "$seconds" "$python" "tests/programs/$name.py"
  fi
}

wanted() {
  [ ${#only[@]} -eq 0 ] && return 0
  local name
  for name in "${only[@]}"; do [[ $1 == *"$name"* ]] && return 0; done
  return 1
}

# The counts of a step's own closing line; a step without one counts as one test.
counts() { # log status
  local line
  line=$(grep -aE '^ *(Summary|[0-9]+ passed, [0-9]+ failed)' "$1" | tail -n 1)
  local p f
  p=$(grep -oE '[0-9]+ passed' <<<"$line" | tail -n 1)
  f=$(grep -oE '[0-9]+ failed' <<<"$line" | tail -n 1)
  p=${p%% *} f=${f%% *}
  if [ -z "$p$f" ]; then p=$(($2 == 0)); fi
  p=${p:-0} f=${f:-0}
  [ "$2" -ne 0 ] && [ "$f" -eq 0 ] && f=1
  echo "$p $f"
}

passed=0 failed=0 ran=0 failures=()
while read -r name seconds; do
  [ -n "$name" ] && wanted "$name" || continue
  [ -n "${TRIALFS_TEST_FULL:-}" ] && seconds=$((seconds * full_seconds_factor))
  log=$work/log/$name
  started=$(date +%s.%N)
  printf '%-14s ' "$name"
  case $name in
    install | format | lints | licences | build | quickstart) ready=0 ;;
    *) servers >"$log" 2>&1; ready=$? ;;
  esac
  if [ "$ready" -eq 0 ]; then
    # Behind `wait`, so that a signal to this script is heard at once.
    run_step "$name" "$seconds" >"$log" 2>&1 </dev/null &
    step_pid=$!
    wait "$step_pid"
    status=$?
    step_pid=
  else
    status=1
  fi
  left=$(mounts_left)
  if [ -n "$left" ]; then
    echo "left mounted: $left" >>"$log"
    status=1
    while read -r point; do umount -l "$point" 2>/dev/null || fusermount3 -uz "$point"; done <<<"$left"
  fi
  read -r p f < <(counts "$log" "$status")
  passed=$((passed + p)) failed=$((failed + f)) ran=$((ran + 1))
  took=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
  if [ "$status" -eq 0 ]; then
    printf 'ok      %7s s  %s passed\n' "$took" "$p"
  else
    [ "$status" -eq 124 ] && echo "did not end within $seconds s" >>"$log"
    printf 'FAILED  %7s s  %s passed, %s failed\n' "$took" "$p" "$f"
    failures+=("$name")
    sed 's/^/    | /' "$log" | tail -n 150
    case $name in install | build) echo "nothing else can run without $name"; break ;; esac
  fi
done <<<"$steps"

[ "$ran" -gt 0 ] || { echo "no step is named ${only[*]}; see --list" >&2; exit 2; }
if [ "$failed" -gt 0 ]; then echo "failed: ${failures[*]}; logs in $work/log"; fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
