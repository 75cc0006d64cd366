#!/usr/bin/env bash
# From a fresh clone to a training run on a mount: builds trialfs, mounts a directory as the store, trains
# through a kill -9, resumes, shows what is there, unmounts. Installs fuse3, python3 and gcc where they are missing.
# TRIALFS=path uses that binary instead of building one.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { echo "quickstart: $*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "trialfs wants Linux"
missing=()
command -v fusermount3 >/dev/null || missing+=(fuse3)
command -v python3 >/dev/null || missing+=(python3)
# Rust links with it, and one crate is C; a machine that has Rust need not have it.
[ -n "${TRIALFS:-}" ] || command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
  say "Installing ${missing[*]}"
  command -v apt-get >/dev/null || die "please install ${missing[*]} with your package manager"
  sudo=
  [ "$(id -u)" -eq 0 ] || sudo=sudo
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends "${missing[@]}" >/dev/null
fi
[ -e /dev/fuse ] || die "there is no /dev/fuse; load it with: modprobe fuse"

trialfs=${TRIALFS:-}
if [ -z "$trialfs" ]; then
  command -v cargo >/dev/null || die "building wants Rust 1.95 or later: https://rustup.rs"
  say "Building"
  (cd "$root" && cargo build --release --locked)
  trialfs=${CARGO_TARGET_DIR:-$root/target}/release/trialfs
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/trialfs-quickstart.XXXXXX")
mount=$work/trials
mkdir "$work/store" "$mount"
clear_up() {
  grep -q " $mount " /proc/self/mountinfo && { "$trialfs" unmount "$mount" || umount -l "$mount" || fusermount3 -uz "$mount"; }
  rm -rf --one-file-system "$work"
}
trap clear_up EXIT

say "trialfs mount file://$work/store $mount"
"$trialfs" mount "file://$work/store" "$mount" --cache-dir "$work/cache"
ls -ld "$mount"

say "Training, killed with SIGKILL while it writes the checkpoint of epoch 4"
code=0
python3 "$root/scripts/quickstart_train.py" "$mount/run" --die-at 4 || code=$?
[ "$code" -eq 137 ] || die "the training should have been killed, but exited $code"

say "The checkpoint that was cut is not there, and its bytes are kept in quarantine"
ls "$mount/run"
[ ! -e "$mount/run/checkpoint_000004" ] || die "half a checkpoint is there"
say "Training again: it goes on from the last checkpoint"
python3 "$root/scripts/quickstart_train.py" "$mount/run" | tee "$work/second"
grep -q "resumed from checkpoint_000003" "$work/second" || die "it should have resumed from checkpoint_000003"
grep -q "done after" "$work/second" || die "it should have come to its end"

say "What the mount shows"
ls -l "$mount/run" "$mount/run/checkpoint_000007"
"$trialfs" status "$mount"

say "trialfs unmount $mount"
"$trialfs" unmount "$mount"

say "What is in the store, as any other tool sees it"
(cd "$work/store" && find run -type f ! -path '*/.trialfs/*' | sort)
[ "$(find "$work/store/run" -name state.json | wc -l)" -eq 8 ] || die "eight checkpoints should be in the store"
say "It works. For a bucket: trialfs mount s3://BUCKET/PREFIX DIR (see README.md)"
