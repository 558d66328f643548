#!/bin/bash
# install-etcd.sh: puts etcd on PATH, which the tests of contrib/etcd start.
#
# As root it comes from Debian's packages; otherwise this says what to install. What is there already is left alone.
set -euo pipefail

die() { echo "install-etcd.sh: $*" >&2; exit 1; }

if command -v etcd >/dev/null; then
  echo "install-etcd.sh: etcd is $(command -v etcd)"
  exit
fi
{ [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || die "etcd is missing: install it (Debian: etcd-server) so that it is on PATH"
echo "install-etcd.sh: installing etcd from the distribution's packages"
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends etcd-server >/dev/null
command -v etcd >/dev/null || die "the package etcd-server has no etcd"
