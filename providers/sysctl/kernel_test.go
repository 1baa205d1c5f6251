package sysctl_test

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/providers/sysctl"
)

// TestKernel runs in a network namespace of its own, where max is read-only
// for root too and timeouts are the namespace's.
func TestKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		const max, timeout = "net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_udp_timeout"
		keys, err := sysctl.ReadKeys("", nil)
		if err != nil {
			t.Fatal(err)
		}
		if keys[max].Writable || !keys[timeout].Writable {
			t.Errorf("max %+v, timeout %+v", keys[max], keys[timeout])
		}
		if _, there := keys["net.nf_conntrack_max"]; there {
			t.Error("the alias is there outside the initial namespace")
		}
		if err := sysctl.Write("", max, keys[max].Value); err == nil || !strings.Contains(err.Error(), "read-only in this network namespace") {
			t.Errorf("writing max: %v", err)
		}
		if err := sysctl.Write("", timeout, "17"); err != nil {
			t.Error(err)
		}
		if got := strings.TrimSpace(ns.Run("cat", "/proc/sys/net/netfilter/nf_conntrack_udp_timeout")); got != "17" {
			t.Errorf("the timeout is %s", got)
		}
		if err := sysctl.Write("", timeout, "-99999999999"); err == nil || !strings.Contains(err.Error(), "refuses the value") {
			t.Errorf("writing nonsense: %v", err)
		}

		ns.Run("mount", "--bind", "/proc/sys", "/proc/sys")
		ns.Run("mount", "-o", "remount,ro,bind", "/proc/sys")
		keys, err = sysctl.ReadKeys("", []string{timeout})
		if err != nil || keys[timeout].Value != "17" || keys[timeout].Writable {
			t.Errorf("read-only /proc/sys: %+v, %v", keys, err)
		}
		if err := sysctl.Write("", timeout, "18"); err == nil || !strings.Contains(err.Error(), "mounted read-only") {
			t.Errorf("read-only /proc/sys: %v", err)
		}
	})
}

func BenchmarkReadKeys(b *testing.B) {
	for b.Loop() {
		if _, err := sysctl.ReadKeys("", nil); err != nil {
			b.Fatal(err)
		}
	}
}
