package pgmoor

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// errNotHost says what Upstream.Hosts takes. It shows nothing of what was there, which may hold a password.
var errNotHost = errors.New(`not a server: Hosts takes host:port, not a DSN: write "db1:5432", "[::1]:5432", "db1" or "/var/run/postgresql", ` +
	"one element for each server, and put passwords into Config.Secrets")

// splitHost takes an entry of Upstream.Hosts apart. Its errors show nothing of it but a port.
func splitHost(h string) (host string, port uint16, err error) {
	host, service := h, "5432"
	socket := strings.HasPrefix(h, "/")
	i := strings.LastIndexByte(h, ':')
	switch {
	case strings.Contains(h, "://") || strings.ContainsAny(h, "@,") || !socket && strings.ContainsAny(h, "/?= \t\n"):
		return "", 0, errNotHost
	case socket && i > 0, !socket && strings.Count(h, ":") == 1, strings.HasPrefix(h, "[") && strings.Contains(h, "]:"):
		host, service = h[:i], h[i+1:]
	}
	if !socket && strings.ContainsAny(host, ":[]") {
		if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
			host = host[1 : len(host)-1]
		}
		if _, err := netip.ParseAddr(host); err != nil {
			return "", 0, errNotHost
		}
	}
	p, err := strconv.ParseUint(service, 10, 16)
	switch {
	case host == "":
		return "", 0, errNotHost
	case err != nil && strings.Trim(service, "0123456789") != "":
		return "", 0, fmt.Errorf("a port is not a number: %w", errNotHost)
	case err != nil || p == 0:
		return "", 0, fmt.Errorf("port %s is not between 1 and 65535", service)
	}
	return host, uint16(p), nil
}
