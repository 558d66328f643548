"""Logs in by asyncpg as the lines on its standard input say, and writes what each came to (compat/go/logins)."""

import asyncio
import ssl
import sys
from urllib.parse import parse_qsl, quote_plus

import asyncpg


def context(login):
    if login["tls"] != "true":
        return False
    tls = ssl.create_default_context(cafile=login["root"])
    if login["cert"]:
        tls.load_cert_chain(login["cert"], login["key"])
    if login["direct"] == "true":
        tls.set_alpn_protocols(["postgresql"])  # asyncpg leaves that to its caller
    return tls


async def log_in(login):
    try:
        conn = await asyncpg.connect(
            host=login["host"],
            port=int(login["port"]),
            user=login["user"],
            password=login["password"] or None,
            database=login["database"],
            ssl=context(login),
            direct_tls=login["direct"] == "true",
            timeout=10,
        )
        try:
            user, encrypted = await conn.fetchrow(login["asks"])
            return {"user": user, "encrypted": str(encrypted).lower()}
        finally:
            await conn.close()
    except asyncpg.PostgresError as error:
        if error.message is None:  # it is asyncpg's own
            return {"failure": repr(error) + repr(error.__cause__)}
        return {"code": error.sqlstate, "message": error.message}
    except (OSError, asyncpg.InterfaceError) as error:
        return {"failure": str(error) or type(error).__name__}


async def main():
    for line in sys.stdin:
        fields = dict(parse_qsl(line.rstrip("\n").replace("&", "%26").replace("\t", "&"), keep_blank_values=True))
        print("\t".join(f"{name}={quote_plus(value)}" for name, value in (await log_in(fields)).items()), flush=True)


asyncio.run(main())
