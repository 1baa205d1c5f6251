package main

import (
	"fmt"
	"os"
	"os/exec"
)

// verifyFlows is how many entries verify must bear, and verifyMemory what it
// may take for looking at each of them.
const (
	verifyFlows  = 250_000
	verifyMemory = 64 << 20
)

// verifyFull verifies that many connections from before the change leave
// nothing more in the table, against what printing them into nowhere takes.
func verifyFull(s *space) error {
	if _, err := exec.LookPath("conntrack"); err != nil {
		note("verify, 250,000 flows", s.backend, "no conntrack command (package conntrack)")
		return nil
	}
	if _, err := s.exec("*filter\n-A INPUT -p tcp -m state --state RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n", "iptables-restore"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", []byte("900"), 0o644); err != nil {
		return err
	}
	n, err := fill(verifyFlows)
	if err != nil {
		return err
	}
	path, err := s.apply(udpUntracked)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("verify, %d flows", n)
	peak, err := s.peak("verify", path)
	if err != nil {
		return err
	}
	line(what+", memory", s.backend, fmt.Sprintf("%d MB", peak>>20), "", "", fmt.Sprintf("< %d MB", verifyMemory>>20), peak < verifyMemory)
	quiet := func(name string, args ...string) func() error {
		return func() error { return exec.Command(name, args...).Run() } // into /dev/null
	}
	c := compared{ctplan: quiet(s.bin, "verify", path), reference: quiet("conntrack", "-L"), runs: 9}
	return c.atMost(what+" : conntrack -L >/dev/null", s.backend, 1)
}
