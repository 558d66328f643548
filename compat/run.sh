#!/bin/bash
# run.sh [-statements URL] HOST:PORT [HOST:PORT]: every driver's smoke program, or its program of prepared statements, against
# the first address and, where the second is given, against that one too; what the two runs print must be the same byte for byte
# (README.md). URL is where the pooler at the first address says what it has counted.
set -uo pipefail
# shellcheck source=env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

kind=smoke stats='' drivers='psql pgx lib/pq psycopg asyncpg node-postgres pgjdbc'
if [ "${1:-}" = -statements ] && [ $# -ge 2 ]; then
  kind=statements stats=$2 drivers='pgx lib/pq npgsql psycopg asyncpg node-postgres pgjdbc'
  shift 2
fi
[ $# = 1 ] || [ $# = 2 ] || { echo "usage: $0 [-statements URL] HOST:PORT [DIRECT_HOST:DIRECT_PORT]" >&2; exit 2; }
tested=$1 direct=${2:-}

# The programs' environment is this and nothing else that a driver reads, so that runs on two machines agree.
user=${PGUSER:-postgres} database=${PGDATABASE:-postgres} password=${PGPASSWORD:-} sslmode=${PGSSLMODE:-disable}
unset "${!PG@}"
export PGUSER=$user PGDATABASE=$database PGSSLMODE=$sslmode PGPASSFILE=/dev/null PGCONNECT_TIMEOUT=10
[ -z "$password" ] || export PGPASSWORD=$password
export TZ=UTC LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 NODE_PATH=$node_dir/node_modules
export PSQLRC=/dev/null PSQL_HISTORY=/dev/null PAGER=cat

out=$(mktemp -d) || exit 1
trap 'rm -rf "$out"' EXIT

# build DRIVER: compiles the driver's program where it has to be, into the cache.
build() {
  mkdir -p "$bin_dir"
  case $1 in
    pgx) (cd "$here/go" && go build -o "$bin_dir/pgx" ./pgx) ;;
    lib/pq) (cd "$here/go" && go build -o "$bin_dir/libpq" ./libpq) ;;
    npgsql) (cd "$here/go" && go build -o "$bin_dir/npgsql" ./npgsql) ;;
    pgjdbc)
      { [ "$jar_dir/classes/Statements.class" -nt "$here/java/Smoke.java" ] &&
        [ "$jar_dir/classes/Statements.class" -nt "$here/java/Statements.java" ]; } ||
        javac -cp "$pgjdbc_jar" -d "$jar_dir/classes" "$here/java/Smoke.java" "$here/java/Statements.java"
      ;;
  esac
}

# program DRIVER: the driver's program, against PGHOST and PGPORT.
program() {
  case $1 in
    psql) timeout 45 bash "$here/psql/smoke.sh" ;;
    pgx) timeout 45 "$bin_dir/pgx" "$kind" ;;
    lib/pq) timeout 45 "$bin_dir/libpq" "$kind" ;;
    npgsql) timeout 45 "$bin_dir/npgsql" ;;
    psycopg) timeout 45 "$venv/bin/python" "$here/python/${kind}_psycopg.py" ;;
    asyncpg) timeout 45 "$venv/bin/python" "$here/python/${kind}_asyncpg.py" ;;
    node-postgres) timeout 45 node "$here/node/$kind.js" ;;
    pgjdbc) timeout 45 java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$jar_dir/classes:$pgjdbc_jar" "${kind^}" ;;
  esac
}

# against ADDRESS DRIVER FILE: one run, its stdout in FILE. It counts only if it ends well and says so.
against() {
  local host=${1%:*}
  host=${host#[} host=${host%]}
  PGHOST=$host PGPORT=${1##*:} program "$2" >"$3" 2>"$3.err" </dev/null
  local rc=$?
  [ $rc = 0 ] && [ "$(tail -n 1 "$3")" = 'done' ] && return
  echo "compat: $2: FAILED at $1 (exit status $rc)"
  tail -n 20 "$3.err"
  return 1
}

# verdict DRIVER: the driver's verdict, in one line where it is good.
verdict() {
  local seen=$out/tested expected=$out/direct checks name=$1 pins=''
  [ "$kind" = smoke ] || name="$1 $kind"
  build "$1" >"$out/build" 2>&1 || {
    echo "compat: $name: FAILED to build (has compat/install.sh been run?)"
    tail -n 20 "$out/build"
    return 1
  }
  [ -z "$direct" ] || against "$direct" "$1" "$expected" || { tail -n 20 "$expected"; return 1; }
  count_before || return 1
  against "$tested" "$1" "$seen" || {
    if [ -n "$direct" ]; then difference | head -n 100; else tail -n 20 "$seen"; fi
    return 1
  }
  checks=$(grep -c '^- ' "$seen")
  [ -z "$direct" ] || cmp -s "$expected" "$seen" || { echo "compat: $name: DIFF"; difference; return 1; }
  pins=$(count_after) || { printf 'compat: %s: NOT SHARED\n%s\n' "$name" "$pins"; return 1; }
  if [ -n "$direct" ]; then echo "compat: $name: same ($checks checks)$pins"; else echo "compat: $name: ran ($checks checks)$pins"; fi
}

# count_before and count_after look at what the pooler has counted before and after a program of prepared statements ran through
# it. They do nothing for smoke programs, most of which have a reason to keep a server connection.
count_before() {
  [ -z "$stats" ] || "$venv/bin/python" "$here/python/stats.py" "$stats" >"$out/stats"
}

count_after() {
  local said
  [ -n "$stats" ] || return 0
  said=$("$venv/bin/python" "$here/python/stats.py" "$stats" "$out/stats" "$(sed -n 's/^- texts: //p' "$out/tested")") || {
    echo "$said"
    return 1
  }
  echo ", ${said##*$'\n'}"
}

# difference: what the two runs printed differently.
difference() {
  diff -u --label "direct $direct" --label "tested $tested" "$out/direct" "$out/tested" | cut -c -400
}

passed=0 failed=0
for driver in ${COMPAT_DRIVERS:-$drivers}; do
  if verdict "$driver"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed != 0 ]
