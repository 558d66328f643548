#!/bin/bash
# logins.sh [-update]: every driver logs in to a proxy and to PostgreSQL by every method that it knows; what it sees has to be the same
# (README.md). -update rewrites the table in docs/authentication.md.
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

unset "${!PG@}"
mkdir -p "$bin_dir"
[ "$jar_dir/classes/Logins.class" -nt "$here/java/Logins.java" ] ||
  javac -cp "$pgjdbc_jar" -d "$jar_dir/classes" "$here/java/Logins.java"
export COMPAT_PYTHON=$venv/bin/python COMPAT_CLASSPATH=$jar_dir/classes:$pgjdbc_jar NODE_PATH=$node_dir/node_modules
export TZ=UTC LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
cd "$here/go/logins"
go test -c -o "$bin_dir/logins" .
exec timeout 180 "$bin_dir/logins" "$@"
