package main

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

// maxDriftMemory is what a run from cron may take, in bytes.
const maxDriftMemory = 40e6

// driftQuiet looks for drift as cron does, on a host that is as declared, where
// it only costs: without rules, and with 10,000 of somebody else's.
func driftQuiet(s *space) error {
	none, err := s.apply(`conntrack "none" { mode = "disabled" }` + "\n")
	if err != nil {
		return err
	}
	if err := s.driftCosts("drift --quiet, no rules", none, 31); err != nil {
		return err
	}
	// Where there is nothing to read, it is the start of a process that counts.
	start := compared{ctplan: func() error { return s.run(s.bin, "version") }, reference: s.saves, runs: 31}
	alone, _, err := start.quartiles()
	if err != nil {
		return err
	}
	note("of that, the start of ctplan", s.backend, millis(alone))
	if _, err := s.exec(foreign(10_000, "10.%d.%d.%d/32"), "iptables-restore"); err != nil {
		return err
	}
	web, err := s.apply(webUntracked)
	if err != nil {
		return err
	}
	if err := s.driftCosts("drift --quiet, 10,000 v4 rules", web, 21); err != nil {
		return err
	}
	// With something to explain: not timed against the saves, since it reads
	// what they do not.
	if err := s.run("iptables", "-t", "raw", "-F", "CTPLAN-PREROUTING"); err != nil {
		return err
	}
	c := compared{ctplan: func() error { return s.drifts(web) }, reference: s.saves, runs: 11}
	own, _, err := c.quartiles()
	if err != nil {
		return err
	}
	note("drift with a cause, 10,000 v4 rules", s.backend, millis(own))
	return nil
}

// drifts runs drift where something differs.
func (s *space) drifts(path string) error {
	err := exec.Command(s.bin, "drift", "--quiet", path).Run()
	if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() == 2 {
		return nil
	}
	return fmt.Errorf("ctplan drift: %v, and not exit status 2", err)
}

func (s *space) driftCosts(what, path string, runs int) error {
	c := compared{
		ctplan:    func() error { return s.run(s.bin, "drift", "--quiet", path) },
		reference: s.saves,
		runs:      runs,
	}
	if err := c.atMost(what+" : two saves", s.backend, 1.25); err != nil {
		return err
	}
	cmd := exec.Command(s.bin, strings.Fields("drift --quiet "+path)...)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ctplan drift: %w", err)
	}
	peak := float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10)
	line(what+": memory", s.backend, fmt.Sprintf("%.1f MB", peak/1e6), "", "", fmt.Sprintf("<= %d MB", int(maxDriftMemory/1e6)), peak <= maxDriftMemory)
	return nil
}
