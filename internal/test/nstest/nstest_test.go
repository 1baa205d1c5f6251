package nstest_test

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
)

func TestNewIsPrivate(t *testing.T) {
	ns := nstest.New(t, "/etc")
	for _, b := range []host.Backend{host.NFT, host.Legacy} {
		ns.Use(b)
		ns.Run("iptables", "-A", "INPUT", "-m", "comment", "--comment", "nstest-"+string(b), "-j", "ACCEPT")
		if out := ns.Run("iptables-save"); !strings.Contains(out, "nstest-"+string(b)) {
			t.Errorf("%s: the rule is not in there:\n%s", b, out)
		}
		v := ns.Run("iptables", "--version")
		if want := map[host.Backend]string{host.NFT: "nf_tables", host.Legacy: "legacy"}[b]; !strings.Contains(v, want) {
			t.Errorf("%s: version %q", b, v)
		}
	}
	ns.Run("sh", "-c", "echo in here > /etc/nstest && echo in here > /run/nstest")
	for _, path := range []string{"/etc/nstest", "/run/nstest"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is visible outside", path)
		}
		if _, err := os.Stat(ns.Path(path)); err != nil {
			t.Error(err)
		}
	}
	if got := strings.TrimSpace(ns.Run("pwd")); got != ns.Dir {
		t.Errorf("working directory %s, want %s", got, ns.Dir)
	}
}

func TestInside(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ifaces, err := net.Interfaces()
		if err != nil || len(ifaces) == 0 {
			t.Fatal(ifaces, err)
		}
		for _, i := range ifaces {
			if i.Name == "eth0" {
				t.Error("the machine's own interface is visible")
			}
		}
		ns.Use(host.Legacy)
		ns.Run("ip6tables", "-A", "INPUT", "-j", "ACCEPT")
		if err := os.WriteFile("/run/nstest", nil, 0o600); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat("/run/nstest"); err == nil && os.Getenv("CTPLAN_NSTEST_INSIDE") == "" {
		t.Error("/run/nstest is visible outside")
	}
}
