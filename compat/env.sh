# What install.sh and run.sh agree upon: where the drivers are, outside of this tree.
# shellcheck shell=bash disable=SC2034
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${PGMOOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pgmoor}/compat
venv=$cache/venv
node_dir=$cache/node
jar_dir=$cache/java
bin_dir=$cache/bin
pgjdbc_version=42.7.14
pgjdbc_jar=$jar_dir/postgresql-$pgjdbc_version.jar
