package iptables_test

import (
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/providers/iptables"
)

// TestReadIsCheap compares reading and parsing 10,000 rules of each family
// with iptables-save and ip6tables-save, one after the other: the two run side
// by side, so that all else has room.
func TestReadIsCheap(t *testing.T) {
	if testing.Short() {
		t.Skip("measures")
	}
	nstest.Inside(t, func(ns *nstest.NS) {
		for _, b := range backends {
			ns.Use(b)
			rules := tenThousand()
			ns.RunInput(rules, "iptables-restore", "-w", "5")
			var tools iptables.Tools
			saves, reads := time.Hour, time.Hour
			for range 7 {
				begin := time.Now()
				ns.Run("iptables-save")
				ns.Run("ip6tables-save")
				saves = min(saves, time.Since(begin))
				begin = time.Now()
				if got := len(read(t, tools)[0].Tables[0].Rules); got != 10000 {
					t.Fatalf("%d rules", got)
				}
				reads = min(reads, time.Since(begin))
			}
			t.Logf("%s: read and parsed in %v; the two commands take %v: %.2f×", b, reads, saves, float64(reads)/float64(saves))
			if reads > 3*saves { // far off even on a busy machine
				t.Errorf("%s: reading takes %.2f× as long as saving", b, float64(reads)/float64(saves))
			}
			ns.Run("iptables", "-F")
			ns.Run("iptables", "-P", "INPUT", "ACCEPT")
		}
	})
}
