#!/bin/bash
# install.sh: puts the pinned drivers that run.sh needs into the cache directory (README.md).
# What is there already is left alone, so a second run takes a moment.
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

die() { echo "compat/install.sh: $*" >&2; exit 1; }
say() { echo "compat: $*"; }

apt_updated=
# need COMMAND PACKAGE...: the command, from the distribution's packages where it is missing.
need() {
  local command=$1
  shift
  command -v "$command" >/dev/null && return
  { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || die "$command is missing: install $*"
  say "installing $* for $command"
  [ -n "$apt_updated" ] || apt-get -qq update
  apt_updated=yes
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

# unchanged STAMP FILE...: whether STAMP was written for exactly these files.
unchanged() {
  local stamp=$1
  shift
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cat "$@" | sha256sum)" ]
}
# stamp STAMP FILE...: notes what an installation was made from, once it is complete.
stamp() {
  local stamp=$1
  shift
  cat "$@" | sha256sum >"$stamp"
}

install_python() {
  local manifest=$here/python/requirements.txt
  unchanged "$venv/.installed" "$manifest" && [ -x "$venv/bin/python" ] && return
  need python3 python3 python3-venv
  say "installing psycopg and asyncpg"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r "$manifest"
  stamp "$venv/.installed" "$manifest"
}

install_node() {
  local manifest=("$here/node/package.json" "$here/node/package-lock.json")
  unchanged "$node_dir/.installed" "${manifest[@]}" && return
  need node nodejs
  need npm npm
  say "installing node-postgres"
  rm -rf "$node_dir"
  mkdir -p "$node_dir"
  cp "${manifest[@]}" "$node_dir"
  npm ci --prefix "$node_dir" --silent --ignore-scripts --no-audit --no-fund
  stamp "$node_dir/.installed" "${manifest[@]}"
}

install_pgjdbc() {
  need javac default-jdk-headless
  [ -s "$pgjdbc_jar" ] && return
  need mvn maven
  say "installing pgjdbc"
  mkdir -p "$jar_dir"
  (cd "$jar_dir" && mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
    -Dartifact="org.postgresql:postgresql:$pgjdbc_version" -DoutputDirectory="$jar_dir")
}

install_go() {
  command -v go >/dev/null || die "go is missing: install the version that go/go.mod asks for"
  (cd "$here/go" && go mod download)
}

mkdir -p "$cache"
need psql postgresql-client
need timeout coreutils
install_go
install_python
install_node
install_pgjdbc
say "drivers are in $cache"
