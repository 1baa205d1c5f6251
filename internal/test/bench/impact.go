package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
)

// impactFlows and impactRules are how much a plan with impact must bear.
const (
	impactFlows  = 250_000
	impactRules  = 1_000
	impactMemory = 150 << 20
)

const udpUntracked = `
conntrack "busy" {
  mode           = "notrack"
  stateful_rules = "remove"
  notrack "udp" { protocol = "udp" }
  accept "udp" { protocol = "udp" }
}
`

// planImpact plans on a host with many connections, against what printing
// them takes.
func planImpact(s *space) error {
	if _, err := exec.LookPath("conntrack"); err != nil {
		note("plan, 250,000 flows", s.backend, "no conntrack command (package conntrack)")
		return nil
	}
	rules := strings.Replace(foreign(impactRules, "10.%d.%d.%d/32"), "-A INPUT", "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT", 1)
	if _, err := s.exec(rules, "iptables-restore"); err != nil {
		return err
	}
	return s.impact("", 0.6)
}

// impact plans with impactFlows connections open, on rules that are there.
func (s *space) impact(kind string, limit float64) error {
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", []byte("900"), 0o644); err != nil {
		return err
	}
	n, err := fill(impactFlows)
	if err != nil {
		return err
	}
	path, err := s.config(udpUntracked)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("plan, %d flows, %d %srules", n, impactRules, kind)
	// First: a process is charged with what the one that starts it holds by then.
	peak, err := s.peak("plan", path)
	if err != nil {
		return err
	}
	line(what+", memory", s.backend, fmt.Sprintf("%d MB", peak>>20), "", "", fmt.Sprintf("< %d MB", impactMemory>>20), peak < impactMemory)
	c := compared{
		ctplan:    func() error { return s.run(s.bin, "plan", path) },
		reference: func() error { return s.run("conntrack", "-L") },
		runs:      5,
	}
	return c.atMost(what+" : conntrack -L", s.backend, limit)
}

// fill makes n connections over lo, and returns how many are tracked then.
func fill(n int) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	to := &syscall.SockaddrInet4{}
	for i := range n {
		binary.BigEndian.PutUint32(to.Addr[:], 0x7f000001+uint32(i/50_000)<<8)
		to.Port = 10_000 + i%50_000
		if err := syscall.Sendto(fd, []byte("x"), 0, to); err != nil && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) {
			return 0, fmt.Errorf("filling the table: %w", err)
		}
	}
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// curve prints what one packet costs as rules that do not chain grow in number.
func curve(*space) error {
	for _, n := range []int{10, 100, 1_000, 5_000} {
		set := host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true, Tables: []host.Table{{
			Name: "filter", Chains: []host.ChainDecl{{Name: "INPUT", Policy: "ACCEPT"}},
		}}}
		for l := range strings.Lines(foreign(n, "10.%d.%d.%d/32")) {
			if w := strings.Fields(l); len(w) > 2 && w[0] == "-A" {
				set.Tables[0].Rules = append(set.Tables[0].Rules, host.Rule{Chain: w[1], Words: w[2:], Text: strings.Join(w[2:], " ")})
			}
		}
		e := xt.NewEvaluator(host.IPv4, []host.Ruleset{set}, verdict.Facts{})
		perPacket, err := timePacket(e)
		if err != nil {
			return err
		}
		note(fmt.Sprintf("a verdict, %5d rules", n), "", fmt.Sprintf("%d ns", perPacket))
	}
	return nil
}

// timePacket is what one verdict takes, in nanoseconds.
func timePacket(e *verdict.Evaluator) (int64, error) {
	p := verdict.Packet{Hook: verdict.HookInput, Protocol: syscall.IPPROTO_TCP, State: verdict.StateNew, In: "eth0",
		Tuple: host.Tuple{Src: netip.MustParseAddr("10.0.0.200"), Dst: netip.MustParseAddr("192.0.2.1"), SrcPort: 40000, DstPort: 80}}
	const rounds = 200_000
	start := time.Now()
	for range rounds {
		if d := e.Verdict(&p); d.Verdict != verdict.Accepted {
			return 0, fmt.Errorf("a packet that no rule matches was %s by %s", d.Verdict, d.Rule)
		}
	}
	return time.Since(start).Nanoseconds() / rounds, nil
}
