package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// How much native nftables a plan must bear.
const (
	nativeRules    = 10_000
	nativeElements = 100_000
	nativeSnapshot = 64 // bytes of a snapshot for each element
)

// A kind of native rule: what it says for the ith of them from an address.
var nativeKinds = []string{
	`ip saddr %[1]s tcp dport %[2]d accept comment "tenant %[2]d: api"`,
	`iifname "eth0" ip saddr %[1]s tcp dport { 80, 443, %[2]d } accept`,
	`ip saddr %[1]s counter drop`,
	`iifname "eth1" oifname "eth0" ip daddr %[1]s udp dport %[2]d-65535 accept`,
	`ip saddr %[1]s tcp dport %[2]d ct state new limit rate 25/second counter accept`,
}

// native is a table with n rules of the kinds that firewalls are made of.
func native(n int) string {
	var b strings.Builder
	b.WriteString("table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tct state established,related accept\n")
	for i := range n {
		from := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&0xff, i&0xff)
		fmt.Fprintf(&b, "\t\t"+nativeKinds[i%len(nativeKinds)]+"\n", from, 1024+i)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// load gives the host a native ruleset; false where the backend of iptables is
// not the one that this is measured with.
func (s *space) load(ruleset string) (bool, error) {
	if s.backend != "nft" {
		return false, nil
	}
	_, err := s.exec(ruleset, "nft", "-f", "-")
	return true, err
}

// planNative plans on a host with many native rules, against what listing them
// takes.
func planNative(s *space) error {
	if ok, err := s.load(native(nativeRules)); err != nil || !ok {
		return err
	}
	return s.againstList("plan, 10,000 native rules")
}

func (s *space) againstList(what string) error {
	path, err := s.config(strings.Replace(webUntracked, "  mode = ", "  stateful_rules = \"remove\"\n  mode = ", 1))
	if err != nil {
		return err
	}
	c := compared{
		ctplan:    func() error { return s.run(s.bin, "plan", path) },
		reference: func() error { return s.run("nft", "-a", "list", "ruleset") },
		runs:      21,
	}
	if err := c.atMost(what+" : nft -a list", s.backend, 1); err != nil {
		return err
	}
	return s.extras(what, "plan", path)
}

// planElements does so with one large set, and looks at what a snapshot makes
// of it.
func planElements(s *space) error {
	var b strings.Builder
	b.WriteString("table inet filter {\n\tset bad { type ipv4_addr; flags interval; elements = {")
	for i := range nativeElements {
		fmt.Fprintf(&b, " 11.%d.%d.%d/31,", i>>14, i>>6&0xff, i<<2&0xff)
	}
	b.WriteString(" } }\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tip saddr @bad drop\n\t}\n}\n")
	if ok, err := s.load(b.String()); err != nil || !ok {
		return err
	}
	what := "plan, a set of 100,000 elements"
	if err := s.againstList(what); err != nil {
		return err
	}
	file := filepath.Join(s.dir, "snapshot.json")
	if err := s.run(s.bin, "snapshot", "-o", file); err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	const limit = nativeSnapshot * nativeElements
	line(what+", snapshot", s.backend, fmt.Sprintf("%d kB", info.Size()>>10), "", "", fmt.Sprintf("< %d kB", limit>>10), info.Size() < limit)
	return nil
}

// planNativeImpact is planImpact on native rules.
func planNativeImpact(s *space) error {
	if _, err := exec.LookPath("conntrack"); err != nil {
		note("plan, 250,000 flows, native rules", s.backend, "no conntrack command (package conntrack)")
		return nil
	}
	if ok, err := s.load(native(impactRules)); err != nil || !ok {
		return err
	}
	return s.impact("native ", 0.6)
}
