package snapshot

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// TestRead reads a real kernel and a real /etc.
func TestRead(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) { testRead(t, ns) }, "/etc")
}

func testRead(t *testing.T, ns *nstest.NS) {
	ctx := context.Background()
	const sizes = "net.netfilter.nf_conntrack_max = 1000 # \xff\n"
	testhost.Lay(t, "/etc", map[string]string{
		"sysctl.conf":               sizes,
		"sysctl.d/00-folder.conf/x": "", // a folder that is named like a file
		"iptables/rules.v4":         "*filter\nCOMMIT\n",
		"init.d/iptables":           "NF_MODULES_COMMON=(x_tables nf_nat nf_conntrack)\n",
		"own.rules":                 "*filter\nCOMMIT\n",
	})

	for _, backend := range []host.Backend{host.NFT, host.Legacy} {
		ns.Use(backend)
		ns.Run("iptables", "-F")
		ns.Run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
		s, err := Read(ctx, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(); err != nil {
			t.Errorf("what was read is not valid: %v", err)
		}
		if d := cmp.Diff(s, roundTrip(t, s), unread); d != "" {
			t.Errorf("round trip (-want +got):\n%s", d)
		}
		here, err := s.Live()
		if err != nil {
			t.Fatal(err)
		}
		there, err := roundTrip(t, s).Live()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(there, here, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("what was parsed while it was read (-of the text +while read):\n%s", d)
		}
		i := slices.IndexFunc(s.Rules, func(r Rules) bool { return r.Family == host.IPv4 && r.Primary })
		if i < 0 || s.Rules[i].Backend != backend || !strings.Contains(s.Rules[i].Text, "--dport 22") {
			t.Errorf("%s: rules %+v", backend, s.Rules)
		}
		content := map[string]string{}
		for _, f := range s.Files {
			content[f.File.Path] = f.File.Content
		}
		for _, path := range []string{"/etc/sysctl.conf", "/etc/iptables/rules.v4", "/etc/init.d/iptables", etc.DefaultModprobeFile, etc.DefaultModulesLoadFile} {
			if _, ok := content[path]; !ok {
				t.Errorf("%s was not read", path)
			}
		}
		if !strings.Contains(content["/etc/sysctl.conf"], "\xff") {
			t.Errorf("sysctl.conf is %q", content["/etc/sysctl.conf"])
		}

		ns.Run("bash", "-c", "echo > /dev/udp/127.0.0.1/9") // counters and entries move
		again, err := Read(ctx, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if changed := Compare(s, again); len(changed) > 0 {
			t.Errorf("%s: a second look differs in %q", backend, changed)
		}
		ns.Run("iptables", "-A", "INPUT", "-j", "ACCEPT")
		testhost.Lay(t, "/etc", map[string]string{"sysctl.conf": "\n"})
		again, err = Read(ctx, Options{Files: declared.Files{RulesV4: "/etc/own.rules"}})
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"file./etc/iptables/rules.v4", "file./etc/own.rules", "file./etc/sysctl.conf", "iptables.ipv4.filter"}
		if changed := Compare(s, again); !slices.Equal(changed, want) {
			t.Errorf("%s: changed %q, want %q", backend, changed, want)
		}
		testhost.Lay(t, "/etc", map[string]string{"sysctl.conf": sizes})
	}

	if err := os.Remove("/etc/sysctl.conf"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("/etc/sysctl.conf", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(ctx, Options{}); err == nil || !strings.Contains(err.Error(), "/etc/sysctl.conf") {
		t.Errorf("a folder in place of a file that may have to be written: got %v", err)
	}
}

// TestReadCancelled: a caller that gives up gets its error back.
func TestReadCancelled(t *testing.T) {
	nstest.Inside(t, func(*nstest.NS) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := Read(ctx, Options{}); err == nil {
			t.Error("no error from a cancelled read")
		}
	})
}
