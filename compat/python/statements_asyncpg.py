"""asyncpg's program of prepared statements: its cache of them, and those that are prepared explicitly; no other state of a session."""

import asyncio
import datetime

import asyncpg

from report import Failures, check
from smoke_asyncpg import SCHEMA, TEXTS, attempt, connect, prepared, queries

STAR = "select * from turns where id < $1 order by id"
VIEW = "select name, statement, parameter_types::text, from_sql from pg_prepared_statements order by name"

# Texts that both clients prepare. They are not a multiple of three, so that with two clients and three server connections
# lent in turn each of them meets each connection.
SHARED = [
    ("select $1::int + 1 as n, $2::text as t", 1, "héllo"),
    ("select $1::timestamptz as w, $2::bytea as y, $3::float8 as f",
     datetime.datetime(2024, 2, 29, 12, 34, 56, tzinfo=datetime.timezone.utc), b"\0\1\xff", 1.5),
    ("select $1::int8[] as a, $2::bool as o, $3::text as nothing", [1, 2, 1 << 40], True, None),
    ("select count(*), max(v) from turns where id > $1", 0),
]


async def fetch(conn, name, text, *args):
    """Runs a statement from the cache, or one that is put there."""
    await attempt(name, conn.fetch(text, *args))


async def execute(conn, name, text):
    """Runs a text without parameters as a simple Query."""
    await attempt(name, conn.execute(text))


async def turns(cache):
    """Two clients use the same statements; asyncpg counts the names of all clients' statements together."""
    name = f"turns, statement cache {cache}"
    conn, other = await connect(statement_cache_size=cache), await connect(statement_cache_size=cache)
    await execute(conn, f"{name}/create", "create table turns (id int primary key, v text)")
    for n in range(7):  # PostgreSQL may change to a generic plan after five
        for statement in SHARED:
            await fetch(conn, f"{name}/a", *statement)
            await fetch(other, f"{name}/b", *statement)
        await fetch(conn, f"{name}/a inserts", "insert into turns values ($1, $2)", n, f"a{n}")
        await fetch(other, f"{name}/b inserts it again", "insert into turns values ($1, $2)", n, "b")
        await fetch(conn, f"{name}/a divides", "select 6 / $1::int", n - 3)
    await in_transaction(conn, name)
    await altered(conn, other, name)
    await execute(conn, f"{name}/drop", "drop table turns")
    await conn.close()
    await other.close()


async def in_transaction(conn, name):
    """A client uses statements in a transaction, some for the first time, and after an error there."""
    block = conn.transaction(isolation="repeatable_read")
    await block.start()
    await fetch(conn, f"{name}/known", *SHARED[0])
    await fetch(conn, f"{name}/new", "select $1::numeric * 2", 5)
    savepoint = conn.transaction()
    await savepoint.start()
    await fetch(conn, f"{name}/error", "select 6 / $1::int", 0)
    await fetch(conn, f"{name}/refused", *SHARED[0])
    await fetch(conn, f"{name}/new, refused", "select $1::numeric * 3", 5)
    await savepoint.rollback()
    await fetch(conn, f"{name}/known", *SHARED[0])
    await fetch(conn, f"{name}/new again", "select $1::numeric * 3", 5)
    await block.rollback()
    for _ in range(4):
        await fetch(conn, f"{name}/kept", "select $1::numeric * 2", 5)


async def altered(conn, other, name):
    """Both clients use a statement whose table has got another column; asyncpg prepares it anew when the server refuses it."""
    await fetch(conn, f"{name}/star", STAR, 2)
    await fetch(other, f"{name}/star", STAR, 2)
    await execute(conn, f"{name}/alter", "alter table turns add x int default 7")
    for _ in range(4):
        await fetch(conn, f"{name}/star after alter", STAR, 2)
        await fetch(other, f"{name}/star after alter", STAR, 2)


async def again():
    """Statements are dropped in every way that there is, and prepared again under the same names."""
    conn, other = await connect(statement_cache_size=3), await connect(statement_cache_size=3)
    for way in ("deallocate compat_again", "deallocate all", "discard all", "select 1"):
        for n in range(7):  # the cache is too small for all of them
            await fetch(conn, "again/a", f"select $1::int + {n % 5} as a", n)
            await fetch(other, "again/b", f"select $1::text || '{n % 5}' as b", "x")
        await named(conn, other, way)
        await execute(conn, f"again/{way}", way)
        await conn.reload_schema_state()  # what asyncpg has in its cache is dropped
        await attempt("again/gone or not", conn.fetch("execute compat_again(7)"))
        await attempt("again/deallocate", conn.execute("deallocate all"))
        await conn.reload_schema_state()


async def named(conn, other, way):
    """Statements of one name, by SQL and by the protocol."""
    await attempt("again/sql prepare", conn.execute("prepare compat_again(int) as select $1 * 2 as a"))
    mine = await conn.prepare("select $1::int * 3 as a", name="compat_named")
    theirs = await other.prepare("select $1::text || '!' as b", name="compat_named")
    for n in range(4):
        await attempt("again/named a", mine.fetch(n))
        await attempt("again/named b", theirs.fetch("x"))
        await attempt("again/sql", conn.execute("execute compat_again(7)"))
    await attempt("again/twice", conn.prepare("select 1", name="compat_named"))
    await attempt("again/twice", conn.execute("prepare compat_again as select 1"))
    check(f"again/before {way}", len(await conn.fetch(VIEW)) > 2)
    await other.execute("deallocate compat_named")
    await attempt("again/named b is gone", theirs.fetch("x"))


async def warm():
    """Has three connections open at once, so that what may stand between has three, too; keeps them until the program's end."""
    conns = [await connect() for _ in range(3)]
    for conn in conns:
        await conn.execute("begin")
    for conn in conns:
        await conn.execute("rollback")
    return conns


async def main():
    failures = Failures()
    conns = await warm()
    await conns[0].execute("set client_min_messages = warning")
    await conns[0].execute(f"drop schema if exists {SCHEMA} cascade; create schema {SCHEMA}")
    for part, *args in ((queries, 100), (queries, 0), (turns, 100), (turns, 0), (prepared,), (again,)):
        try:
            await part(*args)
        except Exception as error:  # a part that ends early fails the program, not the parts behind it
            failures.add(part.__name__, error)
    await conns[0].execute(f"drop schema {SCHEMA} cascade")
    for conn in conns:
        await conn.close()
    check("texts", len(TEXTS))
    failures.exit()


if __name__ == "__main__":
    asyncio.run(main())
