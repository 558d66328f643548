"""The smoke program of psycopg 3: prepare thresholds, pipeline mode, server-side cursors, COPY, threads."""

import datetime
import hashlib
import threading

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from report import TRANSACTIONS, WORKERS, Failures, check, render

SCHEMA = "compat_psycopg"
LOCK = 70103
OPTIONS = f"-c search_path={SCHEMA} -c geqo=off -c timezone=Europe/Berlin"


TEXTS = set()  # of the statements that were executed


class Connection(psycopg.Connection):
    """A connection that notes the texts of its statements."""

    def execute(self, query, *args, **more):
        TEXTS.add(str(query))
        return super().execute(query, *args, **more)


def connect(**more):
    conn = Connection.connect(application_name="compat_psycopg", options=OPTIONS, autocommit=True, **more)
    conn.add_notice_handler(lambda notice: check("notice", f"{notice.severity} {notice.sqlstate} {notice.message_primary}"))
    return conn


def failure(error):
    """What a program can learn from an error."""
    diag = getattr(error, "diag", None)
    if diag is None or diag.sqlstate is None:
        return f"{type(error).__name__}" if isinstance(error, psycopg.OperationalError) else f"{type(error).__name__} {error}"
    fields = [diag.severity, diag.sqlstate, diag.message_primary, diag.message_detail, diag.message_hint, diag.statement_position]
    return f"{type(error).__name__} " + render(fields + [diag.table_name, diag.column_name, diag.constraint_name, diag.source_function])


def answer(cursor):
    """Columns, rows and status of each result that the cursor has."""
    seen = []
    while True:
        columns = [f"{c.name}:{c.type_code}" for c in cursor.description or []]
        rows = cursor.fetchall() if cursor.description else None
        seen.append([columns, rows, cursor.statusmessage, cursor.rowcount])
        if not cursor.nextset():
            return render(seen)


def query(conn, name, text, params=None, **more):
    try:
        result = answer(conn.execute(text, params, **more))
    except psycopg.Error as error:
        result = failure(error)
    check(name, result, conn.info.transaction_status.name)


def attempt(name, action):
    try:
        check(name, render(action()))
    except psycopg.Error as error:
        check(name, failure(error))


def startup():
    with connect() as conn:
        for name in (
            "server_version server_encoding client_encoding application_name TimeZone DateStyle IntervalStyle integer_datetimes "
            "standard_conforming_strings is_superuser session_authorization in_hot_standby default_transaction_read_only"
        ).split():
            check(f"startup/parameter {name}", render(conn.info.parameter_status(name)))
        check("startup/info", conn.info.server_version, conn.info.encoding, str(conn.info.timezone), conn.info.dbname, conn.info.user)
        query(conn, "startup/options", "select current_setting('search_path'), current_setting('geqo')")
    attempt("startup/no such database", lambda: psycopg.connect(dbname="compat_no_such_database"))
    with connect(client_encoding="latin1") as conn:
        query(conn, "startup/latin1", "select %s, current_setting('client_encoding')", ["é"])


def queries(threshold):
    """The queries, with statements prepared from the first use on (0), after five (5) or never (None)."""
    name = f"queries, prepare_threshold {threshold}"
    when = datetime.datetime(2024, 2, 29, 12, 34, 56, 789000, datetime.timezone.utc)
    with connect(prepare_threshold=threshold) as conn:
        for _ in range(7):
            query(conn, f"{name}/types", "select %s, %s::int8, %s, %s, %s, %s, %s, %s, %s",
                  [42, 1 << 40, "héllo", True, 1.5, b"\0\1\xff", when, [1, 2, 3], None])
        query(conn, f"{name}/binary", "select %s::int4, %s::bytea, %s::text", [1, b"\xff", "t"], binary=True)
        query(conn, f"{name}/jsonb", "select %s, %s::text[]", [Jsonb({"b": [1, None], "a": "x"}), ["a", "b,c", None]])
        query(conn, f"{name}/literals", "select null::int, array[1,null,3], 12.340::numeric, '2024-02-29'::date, '1 day'::interval")
        query(conn, f"{name}/several", "select 1 as a; select 'x' as b where false; create table if not exists k (n int)")
        query(conn, f"{name}/notice", "create table if not exists k (n int)")
        query(conn, f"{name}/several, one fails", "insert into k values (1); select 1 / 0; insert into k values (2)")
        query(conn, f"{name}/nothing stayed", "select count(*) from k")
        query(conn, f"{name}/empty", "")
        for text, params in (("selec 1", None), ("select 1 / %s", [0]), ("select %s::int", ["x"]), ("select * from nowhere", None)):
            query(conn, f"{name}/error", text, params)
        with conn.cursor() as cursor:
            cursor.executemany("insert into k values (%s) returning n", [(n,) for n in range(5)], returning=True)
            check(f"{name}/executemany", answer(cursor))
        query(conn, f"{name}/star", "select * from k")
        query(conn, f"{name}/alter", "alter table k add x int default 7")
        query(conn, f"{name}/star after alter", "select * from k")
        query(conn, f"{name}/drop", "drop table k")


def transactions():
    with connect() as conn:
        query(conn, "transactions/create", "create table tx (n int)")
        with conn.transaction():
            query(conn, "transactions/insert", "insert into tx values (%s)", [1])
            try:
                with conn.transaction():
                    query(conn, "transactions/insert", "insert into tx values (%s)", [2])
                    conn.execute("select 1 / 0")
            except psycopg.Error as error:
                check("transactions/savepoint", failure(error), conn.info.transaction_status.name)
        conn.autocommit = False
        query(conn, "transactions/insert", "insert into tx values (3)")
        query(conn, "transactions/error", "insert into nowhere values (3)")
        query(conn, "transactions/refused", "select 1")
        conn.rollback()
        query(conn, "transactions/what stayed", "select array_agg(n) from tx")
        conn.commit()
        check("transactions/status", conn.info.transaction_status.name)
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        query(conn, "transactions/isolation", "select current_setting('transaction_isolation')")
        conn.rollback()
        conn.isolation_level = None
        conn.tpc_begin("compat_psycopg")
        query(conn, "transactions/two-phase insert", "insert into tx values (4)")
        attempt("transactions/two-phase prepare", conn.tpc_prepare)
        attempt("transactions/two-phase rollback", conn.tpc_rollback)
        query(conn, "transactions/what stayed", "select array_agg(n) from tx")


def pipeline():
    with connect(prepare_threshold=0) as conn:
        query(conn, "pipeline/create", "create table p (n int primary key)")
        with conn.pipeline() as pipe:
            cursors = [conn.execute("insert into p values (%s) returning n", [n]) for n in range(50)]
            cursors.append(conn.execute("select count(*) from p"))
            pipe.sync()
            check("pipeline/good", render([cursor.fetchone() for cursor in cursors]))
        cursors = []
        try:
            with conn.pipeline() as pipe:
                for n in (100, 101, 7, 102):  # 7 is there already
                    cursors.append(conn.execute("insert into p values (%s) returning n", [n]))
                pipe.sync()
                cursors.append(conn.execute("select 'after the sync'"))
                pipe.sync()
                for cursor in cursors:
                    attempt("pipeline/error in the middle", cursor.fetchall)
        except psycopg.Error as error:
            check("pipeline/error", failure(error), conn.info.transaction_status.name)
        query(conn, "pipeline/one implicit transaction", "select count(*), max(n) from p")
        try:
            with conn.transaction(), conn.pipeline():
                conn.execute("insert into p values (200)")
                conn.execute("select 1 / 0")
                conn.execute("insert into p values (201)")
        except psycopg.Error as error:
            check("pipeline/transaction", failure(error), conn.info.transaction_status.name)
        query(conn, "pipeline/rolled back", "select count(*), max(n) from p")
        with conn.pipeline():
            large = conn.execute("select repeat('x', 1000) from generate_series(1, 2000)")
            for n in range(2000):
                conn.execute("select %s::int, %s::text", [n, "y" * 500])
            last = conn.execute("select 'last'")
            check("pipeline/both ways full", len(large.fetchall()), last.fetchone())


def cursors():
    with connect() as conn:
        with conn.transaction(), conn.cursor(name="compat_cursor", scrollable=True) as cursor:
            cursor.itersize = 100
            cursor.execute("select n, n * 2 from generate_series(1, %s) n", [1000])
            check("cursors/first", cursor.fetchone(), cursor.fetchmany(3))
            cursor.scroll(500)
            check("cursors/scrolled", cursor.fetchone())
            check("cursors/rest", sum(row[1] for row in cursor))
        with conn.cursor(name="compat_hold", withhold=True) as cursor:
            cursor.execute("select generate_series(1, 5)")
            check("cursors/hold", cursor.fetchmany(2))
            query(conn, "cursors/between", "select 'another statement'")
            check("cursors/hold", cursor.fetchall())
        check("cursors/stream", sum(n for (n,) in conn.cursor().stream("select generate_series(1, 10000)")))
        with conn.transaction():
            conn.execute("declare failing cursor for select 10 / (5 - n) from generate_series(1, 9) n")
            query(conn, "cursors/fetch", "fetch 3 from failing")
            try:
                with conn.transaction():
                    conn.execute("fetch all from failing")
            except psycopg.Error as error:
                check("cursors/fetch", failure(error))


def copy_in(conn, name, text, rows):
    try:
        with conn.cursor() as cursor:
            with cursor.copy(text) as copy:
                for row in rows:
                    copy.write(row) if isinstance(row, (str, bytes)) else copy.write_row(row)
            check(name, cursor.statusmessage, cursor.rowcount)
    except (psycopg.Error, ValueError) as error:
        check(name, failure(error), conn.info.transaction_status.name)


def copying():
    def broken():
        for n in range(3000):
            yield (20000 + n, "x" * 100)
        raise ValueError("no more")

    with connect() as conn:
        query(conn, "copy/create", "create table c (id int primary key, v text)")
        copy_in(conn, "copy/in", "copy c from stdin", ((n, f"row\t{n}") for n in range(5000)))
        copy_in(conn, "copy/duplicate", "copy c from stdin", [(6000, "new"), (1, "old"), (6001, "new")])
        copy_in(conn, "copy/malformed", "copy c from stdin", ["7000\ta\n", "x\ty\n"] + [f"{n}\tz\n" for n in range(8000, 18000)])
        copy_in(conn, "copy/source fails", "copy c from stdin", broken())
        copy_in(conn, "copy/no table", "copy nowhere from stdin", [(1, "x")])
        query(conn, "copy/after errors", "select count(*) from c")
        with conn.cursor() as cursor:
            with cursor.copy("copy (select * from c where id % 500 = 0 order by id) to stdout") as copy:
                check("copy/out", render(list(copy.rows())))
            with cursor.copy("copy (select id, v from c order by id) to stdout (format binary)") as copy:
                check("copy/out binary", hashlib.sha256(b"".join(copy)).hexdigest())
            try:
                with cursor.copy("copy (select 10 / (5 - n) from generate_series(1, 9) n) to stdout") as copy:
                    for row in copy.rows():
                        check("copy/out row", row)
            except psycopg.Error as error:
                check("copy/out fails", failure(error))
        query(conn, "copy/usable", "select count(*) from c")
        abandoned = connect()
        copy = abandoned.cursor().copy("copy (select repeat('x', 1000) from generate_series(1, 1000000)) to stdout")
        check("copy/out abandoned", len(copy.__enter__().read()))
        abandoned.close()
        query(conn, "copy/not concerned", "select count(*) from c")


def large():
    text = "0123456789abcdef" * (1 << 16)
    with connect() as conn:
        query(conn, "large/1 MiB parameter", "select length(%s), md5(%s)", [text, text])
        rows = conn.execute("select repeat(chr(97 + n %% 26), 1000) from generate_series(1, %s) n", [5000]).fetchall()
        check("large/5 MB of rows", len(rows), hashlib.sha256("".join(row[0] for row in rows).encode()).hexdigest())
        (value,) = conn.execute("select string_agg(md5(n::text), '') from generate_series(1, 160000) n").fetchone()
        check("large/5 MB in one value", len(value), hashlib.sha256(value.encode()).hexdigest())


def session():
    with connect() as conn, connect() as other:
        query(conn, "session/set", "set datestyle = 'German'")
        check("session/parameter", conn.info.parameter_status("DateStyle"))
        query(conn, "session/show", "show datestyle")
        with conn.transaction(force_rollback=True):
            query(conn, "session/set", "set timezone = 'Asia/Tokyo'")
            check("session/parameter", conn.info.parameter_status("TimeZone"))
        check("session/parameter", conn.info.parameter_status("TimeZone"))
        query(conn, "session/temp", "create temp table mine as select 1 as n")
        query(conn, "session/temp", "select * from mine")
        query(conn, "session/lock", "select pg_advisory_lock(%s)::text", [LOCK])
        query(other, "session/other", "show datestyle")
        query(other, "session/other", "select * from mine")
        query(other, "session/other", "select pg_try_advisory_lock(%s)", [LOCK])
        query(conn, "session/unlock", "select pg_advisory_unlock(%s)", [LOCK])
        query(other, "session/other", "select pg_try_advisory_lock(%s), pg_advisory_unlock(%s)", [LOCK, LOCK])
        query(conn, "session/timeout", "set statement_timeout = 50")
        query(conn, "session/timed out", "select pg_sleep(20)")
        query(conn, "session/discard", "discard all")
        query(conn, "session/gone", "select * from mine")
        query(conn, "session/show", "select current_setting('datestyle'), current_setting('statement_timeout')")


def cancel_when_running(conn, text):
    with connect() as other:
        running = "select count(*) from pg_stat_activity where query = %s and wait_event = 'PgSleep'"
        while other.execute(running, [text]).fetchone() == (0,):
            pass
        conn.cancel_safe()


def cancel():
    text = "select pg_sleep(50) /* compat_psycopg */"
    with connect() as conn:
        for name in ("cancel", "cancel again"):
            thread = threading.Thread(target=cancel_when_running, args=(conn, text))
            thread.start()
            query(conn, f"cancel/{name}", text)
            thread.join()
            query(conn, "cancel/usable", "select 'still here'")


def notify():
    with connect() as conn:
        conn.execute("listen compat_psycopg")
        for payload in ("first", "second"):
            conn.execute("select pg_notify('compat_psycopg', %s)", [payload])
            for note in conn.notifies(timeout=5, stop_after=1):
                check("notify/own", note.channel, note.payload)
        with conn.transaction():
            conn.execute("notify compat_psycopg, 'third'")
            check("notify/before commit", [note.payload for note in conn.notifies(timeout=0)])
        check("notify/after commit", [note.payload for note in conn.notifies(timeout=5, stop_after=1)])
        conn.execute("unlisten *")


def count(worker, errors):
    """Adds one to the worker's own row and to the shared one in each transaction, some of which are undone first."""
    try:
        with connect() as conn:
            for n in range(TRANSACTIONS):
                with conn.transaction(force_rollback=True) if n % 5 == 0 else conn.transaction():
                    conn.execute("update counter set n = n + 1 where id in (0, %s)", [worker])
                if n % 5 == 0:
                    with conn.transaction():
                        conn.execute("update counter set n = n + 1 where id in (0, %s)", [worker])
    except psycopg.Error as error:
        errors.append(failure(error))


def concurrent():
    with connect() as conn:
        conn.execute("create table counter as select id, 0 as n from generate_series(0, %s) id", [WORKERS])
        errors = []
        threads = [threading.Thread(target=count, args=(n + 1, errors)) for n in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check("concurrent/errors", errors)
        query(conn, "concurrent/shared", "select n from counter where id = 0")
        query(conn, "concurrent/own", "select min(n), max(n), count(*) from counter where id > 0")


def forget_two_phase():
    """Rolls back what a run that was killed may have left; the transaction would hold locks for ever."""
    with psycopg.connect(autocommit=True) as conn:
        for (left,) in conn.execute("select gid from pg_prepared_xacts where gid like '%compat\\_psycopg%'").fetchall():
            conn.execute(sql.SQL("rollback prepared {}").format(left))


def main():
    failures = Failures()
    forget_two_phase()
    with psycopg.connect(autocommit=True) as conn:
        conn.execute(sql.SQL("drop schema if exists {0} cascade; create schema {0}").format(sql.Identifier(SCHEMA)))
    parts = [startup, transactions, pipeline, cursors, copying, large, session, cancel, notify, concurrent]
    for part in parts[:1] + [lambda t=t: queries(t) for t in (0, 5, None)] + parts[1:]:
        try:
            part()
        except Exception as error:  # a part that ends early fails the program, not the parts behind it
            failures.add(part.__name__, error)
    with psycopg.connect(autocommit=True) as conn:
        conn.execute(sql.SQL("drop schema {0} cascade").format(sql.Identifier(SCHEMA)))
    failures.exit()


if __name__ == "__main__":
    main()
