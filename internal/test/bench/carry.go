package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ctplan/ctplan/providers/flows"
)

// carryOver saves a full table and puts it in again, against the conntrack
// command. Emptying it between counts for both.
func carryOver(s *space) error {
	if _, err := exec.LookPath("conntrack"); err != nil {
		note("save and restore, 250,000 flows", s.backend, "no conntrack command (package conntrack)")
		return nil
	}
	if _, err := s.exec("*filter\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n", "iptables-restore"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", []byte("9000"), 0o644); err != nil {
		return err
	}
	n, err := fill(statusFlows)
	if err != nil {
		return err
	}
	own, theirs := filepath.Join(s.dir, "own"), filepath.Join(s.dir, "theirs")
	empty := func() error { return s.run("conntrack", "-F") }
	c := compared{
		ctplan: func() error {
			if err := saveTable(own); err != nil {
				return err
			}
			if err := empty(); err != nil {
				return err
			}
			return restoreTable(own, int64(n))
		},
		reference: func() error {
			return s.run("sh", "-c", "conntrack -L -o save > "+theirs+" 2>/dev/null; conntrack -F; conntrack -R "+theirs)
		},
		runs: 3,
	}
	return c.atMost(fmt.Sprintf("save and restore, %d flows : conntrack -L, -R", n), s.backend, 0.3)
}

func saveTable(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := flows.NewSaver(f)
	if err != nil {
		return err
	}
	if err := s.Save(context.Background(), func(*flows.Entry) bool { return true }); err != nil {
		return err
	}
	return s.Flush()
}

func restoreTable(path string, n int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := flows.OpenTable()
	if err != nil {
		return err
	}
	if err := flows.EachSaved(f, func(s *flows.Saved) error { return t.Restore(s, 9000) }); err != nil {
		return err
	}
	w, err := t.Close()
	if failed, why := w.Failed(); err == nil && (failed > 0 || w.Done < n*9/10) {
		err = fmt.Errorf("of %d entries %d were put in: %s", n, w.Done, why)
	}
	return err
}
