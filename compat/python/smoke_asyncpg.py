"""The smoke program of asyncpg: prepared statements, cursors, COPY, and its pool with the reset on release."""

import asyncio
import datetime
import decimal
import hashlib
import io
import json

import asyncpg

from report import TRANSACTIONS, WORKERS, Failures, check, render

SCHEMA = "compat_asyncpg"
LOCK = 70104
SETTINGS = {"application_name": "compat_asyncpg", "search_path": SCHEMA, "geqo": "off", "timezone": "Europe/Berlin"}


TEXTS = set()  # of the statements that were executed


async def connect(**more):
    conn = await asyncpg.connect(server_settings=SETTINGS, **more)
    conn.add_query_logger(lambda record: TEXTS.add(record.query))
    conn.add_log_listener(lambda _, message: check("notice", f"{message.severity} {message.sqlstate} {message.message}"))
    return conn


def failure(error):
    """What a program can learn from an error."""
    if not isinstance(error, asyncpg.PostgresError):
        return f"{type(error).__name__} {error}"
    names = "severity sqlstate message detail hint position table_name column_name constraint_name server_source_function"
    return f"{type(error).__name__} " + render([getattr(error, name, None) for name in names.split()])


async def attempt(name, action):
    """Reports what an awaitable gives, or how it fails."""
    try:
        result = await action
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        check(name, failure(error))
        return
    if isinstance(result, list):
        result = [list(record.items()) for record in result]
    check(name, render(result))


async def startup():
    conn = await connect()
    settings = conn.get_settings()
    for name in (
        "server_version server_encoding client_encoding application_name TimeZone DateStyle IntervalStyle integer_datetimes "
        "standard_conforming_strings is_superuser session_authorization in_hot_standby default_transaction_read_only"
    ).split():
        check(f"startup/parameter {name}", render(getattr(settings, name, None)))
    check("startup/version", render(list(conn.get_server_version())))
    await attempt("startup/options", conn.fetch("select current_setting('search_path'), current_setting('geqo')"))
    await conn.close()
    await attempt("startup/no such database", asyncpg.connect(database="compat_no_such_database"))


async def queries(cache):
    """The queries, with asyncpg's cache of prepared statements or without one."""
    name = f"queries, statement cache {cache}"
    conn = await connect(statement_cache_size=cache)
    when = datetime.datetime(2024, 2, 29, 12, 34, 56, 789000, datetime.timezone.utc)
    for _ in range(3):
        await attempt(f"{name}/types", conn.fetch(
            "select $1::int4 i, $2::int8 b, $3::text t, $4::bool o, $5::float8 f, $6::bytea y, $7::timestamptz w, $8::int4[] a, $9::text n",
            42, 1 << 40, "héllo", True, 1.5, b"\0\1\xff", when, [1, 2, 3], None))
    await attempt(f"{name}/jsonb", conn.fetch("select $1::jsonb, $2::text[]", json.dumps({"a": [1, None]}), ["a", "b,c", None]))
    await attempt(f"{name}/numeric", conn.fetch("select $1::numeric, '2024-02-29'::date, '1 day'::interval", decimal.Decimal("12.340")))
    await attempt(f"{name}/composite", conn.fetch("select row(1, 'x'), int4range(1, 5)"))
    await attempt(f"{name}/simple", conn.execute("select 1; create table if not exists k (n int primary key); select 2"))
    await attempt(f"{name}/notice", conn.execute("create table if not exists k (n int primary key)"))
    await attempt(f"{name}/several, one fails", conn.execute("insert into k values (1); select 1 / 0; insert into k values (2)"))
    await attempt(f"{name}/executemany", conn.executemany("insert into k values ($1)", [(n,) for n in range(500)]))
    await attempt(f"{name}/executemany fails", conn.executemany("insert into k values ($1)", [(n,) for n in range(900, 400, -1)]))
    await attempt(f"{name}/fetchmany", conn.fetch("select count(*) from k"))
    await attempt(f"{name}/value", conn.fetchval("select sum(n) from k where n > $1", 10))
    await attempt(f"{name}/status", conn.execute("update k set n = -n where n > $1", 490))
    for text, *args in (("selec 1",), ("select 1 / $1::int", 0), ("select * from nowhere",), ("insert into k values ($1)", 5)):
        await attempt(f"{name}/error", conn.fetch(text, *args))
    await attempt(f"{name}/star", conn.fetch("select * from k where n = 1"))
    await attempt(f"{name}/alter", conn.execute("alter table k add x int default 7"))
    await attempt(f"{name}/star after alter", conn.fetch("select * from k where n = 1"))
    await attempt(f"{name}/drop", conn.execute("drop table k"))
    await conn.close()


async def prepared():
    conn = await connect()
    statements = [await conn.prepare(f"select $1::int + {n} as sum, $2::text[] as list") for n in range(3)]
    for statement in statements:
        check("prepared/statement", [p.name for p in statement.get_parameters()], [(a.name, a.type.name) for a in statement.get_attributes()])
    for n in range(7):
        for statement in statements:
            await attempt("prepared/execute", statement.fetch(n, ["x"]))
            check("prepared/status", statement.get_statusmsg())
    named = await conn.prepare("select $1::int * 2", name="compat_named")
    await attempt("prepared/named", named.fetchval(21))
    await attempt("prepared/many", named.fetchmany([(1,), (2,), (3,)]))
    await attempt("prepared/bad", conn.prepare("select * from nowhere"))
    async with conn.transaction():
        cursor = await statements[0].cursor(1, ["c"])
        check("prepared/cursor", render([list(r.items()) for r in await cursor.fetch(5)]))
    await conn.close()


async def transactions():
    conn = await connect()
    await conn.execute("create table tx (n int)")
    try:
        async with conn.transaction(isolation="serializable"):
            await attempt("transactions/isolation", conn.fetchval("show transaction_isolation"))
            await conn.execute("insert into tx values ($1)", 1)
            try:
                async with conn.transaction():
                    await conn.execute("insert into tx values ($1)", 2)
                    await conn.fetch("select 1 / 0")
            except asyncpg.PostgresError as error:
                check("transactions/savepoint", failure(error), conn.is_in_transaction())
        async with conn.transaction():
            await conn.execute("insert into tx values ($1)", 3)
            await attempt("transactions/error", conn.fetch("select * from nowhere"))
            await conn.fetch("select 'refused'")
    except asyncpg.PostgresError as error:
        check("transactions/failed", failure(error), conn.is_in_transaction())
    await attempt("transactions/what stayed", conn.fetchval("select array_agg(n)::text from tx"))
    async with conn.transaction(readonly=True, deferrable=True, isolation="serializable"):
        await attempt("transactions/read only", conn.execute("insert into tx values (4)"))
    await conn.close()


async def cursors():
    conn = await connect()
    async with conn.transaction():
        total = 0
        async for record in conn.cursor("select n from generate_series(1, $1::int) n", 1000, prefetch=70):
            total += record["n"]
        check("cursors/iterated", total)
        cursor = await conn.cursor("select n from generate_series(1, 1000) n")
        await cursor.forward(500)
        check("cursors/forward", (await cursor.fetchrow())["n"], len(await cursor.fetch(1000)), await cursor.fetchrow() is None)
        first = await conn.cursor("select generate_series(1, 5) n")
        second = await conn.cursor("select generate_series(11, 15) n")
        for _ in range(5):
            check("cursors/two", (await first.fetchrow())["n"], (await second.fetchrow())["n"])
    await conn.close()


async def copying():
    conn = await connect()
    await conn.execute("create table c (id int primary key, v text)")

    def records(first, count, *more):
        return [(first + n, f"row\t{n}") for n in range(count)] + list(more)

    await attempt("copy/records", conn.copy_records_to_table("c", records=records(0, 5000)))
    await attempt("copy/duplicate", conn.copy_records_to_table("c", records=records(6000, 5000, (1, "old"))))
    source = io.BytesIO(b"20000;\n20001;x\n")
    await attempt("copy/csv", conn.copy_to_table("c", source=source, format="csv", delimiter=";"))
    source = io.BytesIO(b"30000\tx\nnot a number\ty\n")
    await attempt("copy/malformed", conn.copy_to_table("c", source=source))

    async def broken():
        for n in range(2000):
            yield f"{40000 + n}\t{'x' * 100}\n".encode()
        raise ValueError("no more")

    try:
        await conn.copy_to_table("c", source=broken())
    except (ValueError, asyncpg.PostgresError) as error:
        check("copy/source fails", failure(error))
    out = io.BytesIO()
    await attempt("copy/out", conn.copy_from_query("select * from c where id % 500 = $1 order by id", 0, output=out))
    check("copy/out", render(out.getvalue().decode()))
    await attempt("copy/out fails", conn.copy_from_query("select 10 / (5 - n) from generate_series(1, 9) n", output=io.BytesIO()))
    await attempt("copy/usable", conn.fetchval("select count(*) from c"))
    await conn.close()


async def large():
    conn = await connect()
    await attempt("large/1 MiB parameter", conn.fetch("select length($1::text), md5($1::text)", "0123456789abcdef" * (1 << 16)))
    rows = await conn.fetch("select repeat(chr(97 + n % 26), 1000) from generate_series(1, $1::int) n", 5000)
    check("large/5 MB of rows", len(rows), hashlib.sha256("".join(row[0] for row in rows).encode()).hexdigest())
    value = await conn.fetchval("select string_agg(md5(n::text), '') from generate_series(1, 160000) n")
    check("large/5 MB in one value", len(value), hashlib.sha256(value.encode()).hexdigest())
    await conn.close()


async def session():
    conn, other = await connect(), await connect()
    await attempt("session/set", conn.execute("set datestyle = 'German'"))
    check("session/parameter", conn.get_settings().DateStyle)
    await attempt("session/show", conn.fetchval("show datestyle"))
    await attempt("session/set_config", conn.fetchval("select set_config('compat.tenant', $1, false)", "seven"))
    await attempt("session/temp", conn.execute("create temp table mine as select 1 as n"))
    await attempt("session/temp", conn.fetch("select * from mine"))
    await attempt("session/lock", conn.execute(f"select pg_advisory_lock({LOCK})"))
    await attempt("session/other", other.fetchval("show datestyle"))
    await attempt("session/other", other.fetchval("select current_setting('compat.tenant', true)"))
    await attempt("session/other", other.fetch("select * from mine"))
    await attempt("session/other", other.fetchval("select pg_try_advisory_lock($1)", LOCK))
    await attempt("session/unlock", conn.fetchval("select pg_advisory_unlock($1)", LOCK))
    await attempt("session/timeout", conn.execute("set statement_timeout = 50"))
    await attempt("session/timed out", conn.fetch("select pg_sleep(20)"))
    await attempt("session/reset", conn.reset())
    await attempt("session/show", conn.fetchval("select current_setting('datestyle') || current_setting('statement_timeout')"))
    await conn.close()
    await other.close()


async def until_running(conn, text):
    while not await conn.fetchval("select count(*) from pg_stat_activity where query = $1 and wait_event = 'PgSleep'", text):
        pass


async def cancel():
    conn, other = await connect(), await connect()
    text = "select pg_sleep(50) /* compat_asyncpg */"
    for _ in range(2):
        task = asyncio.create_task(conn.execute(text))
        await until_running(other, text)
        task.cancel()  # asyncpg sends the cancel request, and then waits for its effect before the next query
        try:
            await task
        except asyncio.CancelledError:
            check("cancel/canceled", "canceled")
        await attempt("cancel/usable", conn.fetchval("select 'still here'"))
    try:
        await conn.execute("select pg_sleep(50)", timeout=0.05)
    except asyncio.TimeoutError:
        check("cancel/timeout", "timed out", conn.is_closed())
    await attempt("cancel/usable", conn.fetchval("select 'still here'"))
    await conn.close()
    await other.close()


async def notify():
    conn = await connect()
    heard = asyncio.Queue()

    def listener(_conn, _pid, channel, payload):
        heard.put_nowait(f"{channel} {payload}")

    await conn.add_listener("compat_asyncpg", listener)
    for payload in ("first", "second"):
        await conn.execute("select pg_notify('compat_asyncpg', $1)", payload)
        check("notify/own", await asyncio.wait_for(heard.get(), 5))
    async with conn.transaction():
        await conn.execute("notify compat_asyncpg, 'third'")
        check("notify/before commit", heard.qsize())
    check("notify/after commit", await asyncio.wait_for(heard.get(), 5))
    await conn.remove_listener("compat_asyncpg", listener)
    await attempt("notify/channels", conn.fetchval("select count(*) from pg_listening_channels()"))
    await conn.close()


async def count(pool, worker):
    """Adds one to the worker's own row and to the shared one in each transaction, some of which are undone first."""
    for n in range(TRANSACTIONS):
        async with pool.acquire() as conn:
            if n % 5 == 0:
                transaction = conn.transaction()
                await transaction.start()
                await conn.execute("update counter set n = n + 1 where id in (0, $1)", worker)
                await transaction.rollback()
            async with conn.transaction():
                await conn.execute("update counter set n = n + 1 where id in (0, $1)", worker)


async def pool():
    async with asyncpg.create_pool(min_size=1, max_size=1, server_settings=SETTINGS) as single:
        async with single.acquire() as conn:
            await conn.execute("set datestyle = 'German'")
            await conn.execute("create temp table kept as select 1 as n")
            await conn.execute(f"select pg_advisory_lock({LOCK})")
        async with single.acquire() as conn:  # the same connection, after asyncpg's reset
            await attempt("pool/reset", conn.fetchval("show datestyle"))
            await attempt("pool/temp", conn.fetch("select * from kept"))
            await attempt("pool/unlocked", conn.fetchval("select pg_advisory_unlock($1)", LOCK))
    async with asyncpg.create_pool(min_size=WORKERS, max_size=WORKERS, server_settings=SETTINGS) as shared:
        await shared.execute("create table counter as select id, 0 as n from generate_series(0, 20) id")
        await asyncio.gather(*(count(shared, n + 1) for n in range(WORKERS)))
        await attempt("pool/shared", shared.fetchval("select n from counter where id = 0"))
        await attempt("pool/own", shared.fetch("select min(n), max(n), count(*) from counter where id > 0"))


async def admin(text):
    conn = await asyncpg.connect(server_settings={"client_min_messages": "warning"})
    await conn.execute(text)
    await conn.close()


async def main():
    failures = Failures()
    await admin(f"drop schema if exists {SCHEMA} cascade; create schema {SCHEMA}")
    parts = [prepared, transactions, cursors, copying, large, session, cancel, notify, pool]
    for part in [startup, lambda: queries(100), lambda: queries(0)] + parts:
        try:
            await part()
        except Exception as error:  # a part that ends early fails the program, not the parts behind it
            failures.add(part.__name__, error)
    await admin(f"drop schema {SCHEMA} cascade")
    failures.exit()


if __name__ == "__main__":
    asyncio.run(main())
