"""Logs in by psycopg as the lines on its standard input say, and writes what each came to (compat/go/logins)."""

import ctypes
import glob
import os
import sys
from urllib.parse import parse_qsl, quote_plus

import psycopg
import psycopg_binary

PQAUTHDATA_OAUTH_BEARER_TOKEN = 1


class BearerRequest(ctypes.Structure):
    """PGoauthBearerRequest of libpq-fe.h."""

    _fields_ = [
        ("openid_configuration", ctypes.c_char_p),
        ("scope", ctypes.c_char_p),
        ("async_", ctypes.c_void_p),
        ("cleanup", ctypes.c_void_p),
        ("token", ctypes.c_char_p),
        ("user", ctypes.c_void_p),
    ]


token = b""


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def auth_data(kind, _conn, data):
    """Gives libpq the token, in the place of the browser of its own flow."""
    if kind != PQAUTHDATA_OAUTH_BEARER_TOKEN or not token:
        return 0
    request = ctypes.cast(data, ctypes.POINTER(BearerRequest)).contents
    request.token = token
    return 1


def libpq():
    """The libpq that psycopg has loaded, which has no function of its own for this."""
    directory = os.path.join(os.path.dirname(os.path.dirname(psycopg_binary.__file__)), "psycopg_binary.libs")
    (path,) = glob.glob(os.path.join(directory, "libpq-*.so*"))
    return ctypes.CDLL(path)


def conninfo(login):
    info = {
        "host": login["host"],
        "port": login["port"],
        "user": login["user"],
        "dbname": login["database"],
        "gssencmode": "disable",
        "connect_timeout": "10",
        "sslmode": "disable",
    }
    if login["tls"] == "true":
        info.update(sslmode="verify-full", sslrootcert=login["root"], sslcert=login["cert"], sslkey=login["key"])
    if login["direct"] == "true":
        info["sslnegotiation"] = "direct"
    if login["bind"] == "true":
        info["channel_binding"] = "require"
    if login["token"]:
        info.update(oauth_issuer="https://issuer.example", oauth_client_id="compat")
    info.update(password=login["password"], require_auth=login["require"])
    return {name: value for name, value in info.items() if value}


def log_in(login):
    global token
    token = login["token"].encode()
    try:
        with psycopg.connect(**conninfo(login), autocommit=True) as conn:
            user, encrypted = conn.execute(login["asks"]).fetchone()
            return {"user": user, "encrypted": str(encrypted).lower()}
    except psycopg.Error as error:
        return {"libpq": str(error) or type(error).__name__}


libpq().PQsetAuthDataHook(auth_data)
for line in sys.stdin:
    fields = dict(parse_qsl(line.rstrip("\n").replace("&", "%26").replace("\t", "&"), keep_blank_values=True))
    print("\t".join(f"{name}={quote_plus(value)}" for name, value in log_in(fields).items()), flush=True)
