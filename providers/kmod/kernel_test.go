package kmod_test

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/kmod"
)

// TestKernel asks the real kernel from a network namespace, where the table
// cannot be resized. The size it asks for is the one that is set, so that
// nothing happens even where the kernel takes it.
func TestKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		c, err := kmod.ReadConntrack("")
		if err != nil {
			t.Fatal(err)
		}
		if c.InitialNetns {
			t.Error("taken for the initial network namespace")
		}
		if c.Kind == host.ConntrackAbsent || !c.Loaded {
			t.Skipf("connection tracking is %s here", c.Kind)
		}
		if c.Hashsize < 1 || c.Max < 0 || c.Count != 0 {
			t.Errorf("got %+v", c)
		}
		if err := kmod.SetHashsize("", c.Hashsize); err == nil || !strings.Contains(err.Error(), "initial network namespace only") {
			t.Errorf("SetHashsize: %v", err)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	for b.Loop() {
		if _, err := kmod.ReadConntrack(""); err != nil {
			b.Fatal(err)
		}
		for _, paths := range []func(string, string) ([]hostfile.Conf, error){kmod.ModprobePaths, kmod.ModulesLoadPaths} {
			if _, err := paths("", ""); err != nil {
				b.Fatal(err)
			}
		}
	}
}
