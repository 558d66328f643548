#!/bin/bash
# The smoke program of psql: what it prints on stdout and stderr, statement by statement. run.sh sets the environment.
set -uo pipefail

schema=compat_psql
export PGAPPNAME=compat_psql PGOPTIONS="-c search_path=$schema -c geqo=off -c timezone=Europe/Berlin"
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

# check NAME ARGUMENT...: one psql and what it prints, without process ids, object ids and the server's address.
check() {
  echo "- $1"
  shift
  timeout 30 psql -X "$@" 2>&1 |
    sed -E 's/(server process with PID|^lo_import|^lo_unlink) [0-9]+/\1 N/; s/(connection to server) at .* (failed: )/\1 \2/'
  echo "exit status ${PIPESTATUS[0]}"
}

# admin STATEMENT: quiet housekeeping, which has to succeed.
admin() {
  PGOPTIONS="-c client_min_messages=warning" psql -X -q -v ON_ERROR_STOP=1 -c "$1" || exit 1
}

queries() {
  check 'one statement' -c 'select 1 as one, null as nothing'
  check 'several statements' -c 'select 1 as a; select 2 as b where false; create table t (id int primary key, v text); select count(*) from t'
  check 'several -c' -c "insert into t values (1, 'x')" -c 'select * from t' -c '\d t'
  check 'several statements, one fails' -c 'insert into t values (2); select 1 / 0; insert into t values (3)'
  check 'all or nothing' -At -c 'select count(*) from t'
  check 'single transaction' -1 -c 'insert into t values (4)' -c 'select * from nowhere' -c 'select 5'
  check 'ON_ERROR_STOP' -v ON_ERROR_STOP=1 -c 'select 1' -c 'selec 2' -c 'select 3'
  check 'verbose error' -v VERBOSITY=verbose -c "insert into t values (1, 'again')"
  check 'sqlstate' -v VERBOSITY=sqlstate -c 'select * from nowhere'
  check 'notices' -c "do \$\$ begin raise notice 'one'; raise warning 'two' using hint = 'three'; raise info 'four'; end \$\$"
  check 'empty' -c '' -c ';' -c '-- nothing'
  check 'no such database' -d compat_no_such_database -c 'select 1'
  check 'formats' -P format=csv -c "select '{1,NULL}'::int[], '{\"a\": 1}'::jsonb, timestamptz '2024-02-29 12:00+00', 'a,b' as text"
  check 'large result' -At -c "select md5(string_agg(r, '')), count(*) from (select repeat('x', 1000) from generate_series(1, 5000)) s(r)"
  check 'startup' -At -c "select name, setting from pg_settings where name in ('search_path', 'geqo', 'TimeZone', 'application_name', 'client_encoding') order by 1"
}

# The script is read by psql as a session of its own: transactions, variables, cursors, COPY, settings.
script() {
  check 'script' -e <<'SQL'
\encoding
\echo :SERVER_VERSION_NUM :ENCODING :DBNAME :USER
begin;
savepoint s;
select 1 / 0;
select 'refused';
rollback to s;
insert into t values (10, 'kept');
commit;
select 1 as a \; select 2 as b \; select 3 as c;
select id, v, 1.5::numeric(5,2) as n from t \gdesc
select 10 as ten \gset
\echo :ten :ROW_COUNT
select * from nowhere;
\echo :SQLSTATE :LAST_ERROR_MESSAGE
select 'create table x' || n || ' ()' from generate_series(1, 3) n \gexec
\dt
\set FETCH_COUNT 7
select n from generate_series(1, 20) n;
select 10 / (15 - n) from generate_series(1, 20) n;
\unset FETCH_COUNT
\copy t from stdin
20	copied
21	\N
\.
\copy t from stdin
22	new
20	again
\.
copy t from stdin with (format csv);
23,"a,b"
x,y
\.
copy (select * from t order by id) to stdout;
\copy (select id from t order by id) to stdout with (format csv, header)
copy (select 10 / (3 - n) from generate_series(1, 5) n) to stdout;
prepare p(int) as select $1 * 2 as twice;
execute p(21);
deallocate p;
execute p(21);
begin;
declare c scroll cursor for select generate_series(1, 10);
fetch 3 from c;
fetch backward 1 from c;
rollback;
set datestyle = 'German';
show datestyle;
begin;
set local datestyle = 'SQL';
set timezone = 'Asia/Tokyo';
show datestyle;
rollback;
show timezone;
reset datestyle;
create temp table mine as select 1 as n;
select * from mine;
select pg_advisory_lock(70106);
select pg_advisory_unlock(70106);
select pg_advisory_unlock(70106);
listen compat_psql;
notify compat_psql, 'payload';
begin;
notify compat_psql, 'after commit';
select 'not yet';
commit;
unlisten *;
set statement_timeout = 50;
select pg_sleep(20);
reset statement_timeout;
\lo_import /dev/null
\if :{?LASTOID}
\lo_unlink :LASTOID
\endif
\connect -reuse-previous=on "application_name=compat_again"
show application_name;
select * from mine;
SQL
}

files() {
  psql -X -q -At -c "select n, repeat('v', 100) from generate_series(1000, 21000) n" -F $'\t' >"$tmp/rows"
  check 'copy a file in' -c "\copy t from '$tmp/rows'"
  check 'copy it again' -c "\copy t from '$tmp/rows'"
  check 'copy a file out' -c "\copy (select * from t where id >= 1000 order by id) to '$tmp/out'"
  cmp "$tmp/rows" "$tmp/out" && echo '- the same file'
  printf 'select length(%s), md5(%s);\n' "'$(printf '%01048576d' 7)'" "'$(printf '%01048576d' 7)'" >"$tmp/large.sql"
  check '2 MiB statement' -At -f "$tmp/large.sql"
}

# cancel interrupts a psql as Ctrl-C does, once its query is seen to run. psql goes no further then.
cancel() {
  local sleep='select pg_sleep(50) /* compat_psql */'
  # A job of a shell without job control ignores SIGINT, which psql would inherit.
  set -m
  psql -X -At -c "$sleep" >"$tmp/canceled" 2>&1 &
  local pid=$!
  set +m
  until psql -X -At -c "select 1 from pg_stat_activity where query = '$sleep' and wait_event = 'PgSleep'" | grep -q 1; do :; done
  kill -INT "$pid"
  wait "$pid"
  local status=$?
  echo '- cancel'
  cat "$tmp/canceled"
  echo "exit status $status"
}

# count ID: adds one to the worker's own row and to the shared one in each of twenty transactions.
count() {
  for _ in {1..20}; do
    echo "begin; update counter set n = n + 1 where id in (0, $1); rollback;"
    echo 'begin;'
    echo "update counter set n = n + 1 where id in (0, $1);"
    echo 'commit;'
  done | psql -X -q
}

concurrent() {
  psql -X -q -c 'create table counter as select id, 0 as n from generate_series(0, 20) id'
  for id in {1..20}; do count "$id" & done
  wait
  check 'concurrent' -At -c 'select n from counter where id = 0' -c 'select min(n), max(n), count(*) from counter where id > 0'
}

admin "drop schema if exists $schema cascade"
admin "create schema $schema"
queries
script
files
cancel
concurrent
admin "drop schema $schema cascade"
echo 'done'
