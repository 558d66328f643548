"""psycopg 3's program of prepared statements: prepare thresholds, pipeline mode; it makes no other state of a session."""

import datetime

import psycopg
from psycopg import sql

from report import Failures, check
from smoke_psycopg import SCHEMA, TEXTS, attempt, connect, failure, pipeline, queries, query

STAR = "select * from turns where id < %s order by id"
VIEW = "select name, statement, parameter_types::text, from_sql from pg_prepared_statements order by name"

# Texts that both clients prepare. They are not a multiple of three, so that with two clients and three server connections
# lent in turn each of them meets each connection.
SHARED = [
    ("select %s::int + 1 as n, %s::text as t", [1, "héllo"]),
    ("select %s as w, %s as y, %s as f", [datetime.datetime(2024, 2, 29, 12, 34, 56, tzinfo=datetime.timezone.utc), b"\0\1\xff", 1.5]),
    ("select %s::int8[] as a, %s as o, %s::text as nothing", [[1, 2, 1 << 40], True, None]),
    ("select count(*), max(v) from turns where id > %s", [0]),
]


def turns(threshold):
    """Two clients use the same statements; psycopg gives them the names _pg3_0, _pg3_1 and so on for both."""
    name = f"turns, prepare_threshold {threshold}"
    with connect(prepare_threshold=threshold) as conn, connect(prepare_threshold=threshold) as other:
        query(conn, f"{name}/create", "create table turns (id int primary key, v text)")
        for n in range(12):  # past psycopg's threshold of five, and PostgreSQL's for a generic plan
            for text, params in SHARED:
                query(conn, f"{name}/a", text, params)
                query(other, f"{name}/b", text, params)
            query(conn, f"{name}/a inserts", "insert into turns values (%s, %s)", [n, f"a{n}"])
            query(other, f"{name}/b inserts it again", "insert into turns values (%s, %s)", [n, "b"])
            query(conn, f"{name}/a divides", "select 6 / %s::int", [n - 3])
        in_transaction(conn, name)
        altered(conn, other, name)
        query(conn, f"{name}/drop", "drop table turns")


def in_transaction(conn, name):
    """A client uses statements in a transaction, some for the first time, and after an error there."""
    text, params = SHARED[0]
    try:
        with conn.transaction(force_rollback=True):
            query(conn, f"{name}/known", text, params)
            query(conn, f"{name}/new", "select %s::numeric * 2", ["1.25"], prepare=True)
            try:
                with conn.transaction():
                    conn.execute("select 6 / %s::int", [0], prepare=True)
            except psycopg.Error as error:
                check(f"{name}/error", failure(error))
            query(conn, f"{name}/known", text, params)
            query(conn, f"{name}/error", "select * from nowhere where n = %s", [1], prepare=True)
            query(conn, f"{name}/refused", text, params)
    except psycopg.Error as error:
        check(f"{name}/rollback", failure(error))
    for _ in range(4):
        query(conn, f"{name}/kept", "select %s::numeric * 2", ["1.25"], prepare=True)


def altered(conn, other, name):
    """Both clients use a statement whose table has got another column, and prepare it again."""
    query(conn, f"{name}/star", STAR, [2], prepare=True)
    query(other, f"{name}/star", STAR, [2], prepare=True)
    query(conn, f"{name}/alter", "alter table turns add x int default 7")  # behind which psycopg drops all statements
    query(other, f"{name}/alter", "alter table turns alter v set default 'new'")
    for _ in range(4):
        query(conn, f"{name}/star after alter", STAR, [2], prepare=True)
        query(other, f"{name}/star after alter", STAR, [2], prepare=True)


def pipelines():
    """Statements of two clients' pipelines, prepared in front of what uses them, with errors in the middle."""
    with connect(prepare_threshold=0) as conn, connect(prepare_threshold=0) as other:
        for n in range(7):
            for client, name in ((conn, "a"), (other, "b")):
                cursors = []
                try:
                    with client.pipeline():
                        cursors += [client.execute(text, params) for text, params in SHARED[:3]]
                        client.execute("select 6 / %s::int", [n % 3])
                        client.execute(*SHARED[0])
                except psycopg.Error as error:  # when it comes depends on how fast the server is
                    check(f"pipelines/{name} fails", failure(error), client.info.transaction_status.name)
                for cursor in cursors:
                    attempt(f"pipelines/{name}", cursor.fetchall)
            query(conn, "pipelines/between", *SHARED[1])


def again():
    """Statements are dropped in every way that there is, and prepared again."""
    with connect(prepare_threshold=0) as conn, connect(prepare_threshold=0) as other:
        conn.prepared_max = 3  # psycopg itself drops those used least recently
        for way in ("deallocate all", "discard all", "deallocate compat_again", "select 1"):
            for client, kind in ((conn, "int"), (other, "text")):
                query(client, "again/sql prepare", f"prepare compat_again({kind}) as select $1 as {kind}", prepare=False)
            for n in range(7):
                query(conn, "again/a", f"select %s::int + {n % 5} as a", [n])
                query(other, "again/b", f"select %s::text || '{n % 5}' as b", ["x"])
                query(conn, "again/sql a", "execute compat_again(7)", prepare=False)
                query(other, "again/sql b", "execute compat_again('x')", prepare=False)
            query(conn, "again/twice", "prepare compat_again as select 1", prepare=False)
            query(conn, "again/view", VIEW, prepare=False)
            query(conn, f"again/{way}", way, prepare=False)
            query(conn, "again/gone or not", "execute compat_again(7)", prepare=False)
            query(other, "again/not gone", "execute compat_again('x')", prepare=False)
            for client in (conn, other):
                query(client, "again/drop", "deallocate all", prepare=False)


def warm():
    """Has three connections open at once, so that what may stand between has three, too; keeps them until the program's end."""
    conns = [connect() for _ in range(3)]
    for conn in conns:
        conn.execute("begin")
    for conn in conns:
        conn.execute("rollback")
    return conns


def main():
    failures = Failures()
    conns = warm()
    admin = conns[0]
    admin.execute(sql.SQL("set client_min_messages = warning"))
    admin.execute(sql.SQL("drop schema if exists {0} cascade").format(sql.Identifier(SCHEMA)))
    admin.execute(sql.SQL("create schema {0}").format(sql.Identifier(SCHEMA)))
    parts = [(part, threshold) for threshold in (0, 5) for part in (queries, turns)] + [(pipeline,), (pipelines,), (again,)]
    for part, *args in parts:
        try:
            part(*args)
        except Exception as error:  # a part that ends early fails the program, not the parts behind it
            failures.add(part.__name__, error)
    admin.execute(sql.SQL("drop schema {0} cascade").format(sql.Identifier(SCHEMA)))
    for conn in conns:
        conn.close()
    check("texts", len(TEXTS))
    failures.exit()


if __name__ == "__main__":
    main()
