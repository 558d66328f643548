package main

import (
	"errors"
	"net/netip"
	"strings"
)

// networks is a flag of networks and addresses with commas between them.
type networks []netip.Prefix

// String joins them.
func (n *networks) String() string {
	var s []string
	for _, p := range *n {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// Set takes them apart.
func (n *networks) Set(s string) error {
	*n = nil
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		p, err := netip.ParsePrefix(part)
		if a, aErr := netip.ParseAddr(part); aErr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return errors.New("not networks or addresses with commas between them, as in 10.0.0.0/8,192.0.2.1")
		}
		*n = append(*n, p)
	}
	return nil
}
