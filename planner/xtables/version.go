package xtables

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// Version is a release of iptables, "1.8.9" as {1, 8, 9}; the zero Version is
// one that is not known.
type Version [3]int

// ParseVersion reads the number that iptables --version and iptables-save give
// of themselves. What distributions append to it does not count.
func ParseVersion(s string) Version {
	var v Version
	for i, part := range strings.SplitN(s, ".", len(v)) {
		digits := len(part) - len(strings.TrimLeft(part, "0123456789"))
		n, err := strconv.Atoi(part[:digits])
		if err != nil {
			return Version{}
		}
		v[i] = n
	}
	return v
}

// Known reports whether the version is known.
func (v Version) Known() bool { return v != Version{} }

// Before reports whether v is an earlier release than 1.8.9, say: {1, 8, 9}.
func (v Version) Before(o Version) bool {
	for i := range v {
		if v[i] != o[i] {
			return v[i] < o[i]
		}
	}
	return false
}

// The first releases that ctplan writes rules through: what it was tried with.
// Before them the nft backend is another command, iptables-compat, or loses
// rules; of the legacy backend's earlier releases none was met.
var (
	firstLegacy = Version{1, 4, 21}
	firstNFT    = Version{1, 8, 2}
)

// Unserved says why rules cannot safely be written through this release of
// iptables, and what to do about it; "" where they can, or where the release is
// not known.
func Unserved(b host.Backend, version string) (why, remedy string) {
	v := ParseVersion(version)
	first := firstLegacy
	if b == host.NFT {
		first = firstNFT
	}
	if !v.Known() || !v.Before(first) {
		return "", ""
	}
	number := func(v Version) string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }
	why = fmt.Sprintf("the host has iptables %s with the %s backend, and ctplan writes rules through %s and later: what an earlier one does with its scripts is not known",
		number(v), b, number(first))
	remedy = "install iptables " + number(first) + " or later"
	if b == host.NFT {
		remedy += ", or have the rules held by the legacy backend"
	}
	return why, remedy
}
