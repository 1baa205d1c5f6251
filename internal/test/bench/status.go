package main

import (
	"fmt"
	"os"
	"os/exec"
)

// statusFlows is how many entries status must bear, and statusGrowth how much
// more memory it may take for them than for none.
const (
	statusFlows  = 250_000
	statusGrowth = 4 << 20
)

// statusFull reads the status of a host with many connections, against what
// printing them into nowhere takes.
func statusFull(s *space) error {
	if _, err := exec.LookPath("conntrack"); err != nil {
		note("status, 250,000 flows", s.backend, "no conntrack command (package conntrack)")
		return nil
	}
	if _, err := s.exec("*filter\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n", "iptables-restore"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", []byte("900"), 0o644); err != nil {
		return err
	}
	empty, err := s.peak("status")
	if err != nil {
		return err
	}
	n, err := fill(statusFlows)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("status, %d flows", n)
	peak, err := s.peak("status")
	if err != nil {
		return err
	}
	mib := func(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
	line(what+" : none, memory", s.backend, mib(peak), mib(empty), fmt.Sprintf("%+.1f", float64(peak-empty)/(1<<20)), fmt.Sprintf("< +%d MiB", statusGrowth>>20), peak < empty+statusGrowth)
	quiet := func(name string, args ...string) func() error {
		return func() error { return exec.Command(name, args...).Run() } // into /dev/null
	}
	c := compared{ctplan: quiet(s.bin, "status"), reference: quiet("conntrack", "-L"), runs: 9}
	return c.atMost(what+" : conntrack -L >/dev/null", s.backend, 0.8)
}
