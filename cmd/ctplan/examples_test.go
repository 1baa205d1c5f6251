package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

// A stateful default-drop server, as most are before ctplan comes.
const stateful = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -s 192.0.2.0/24 -j DROP
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
COMMIT
`

// TestExamplePlans shows what each example plans, as a reviewer would read it:
// for a host with no rules at all, and for a stateful server.
func TestExamplePlans(t *testing.T) {
	for _, tt := range []struct{ example, host string }{
		{"notrack", "api-1"}, {"disabled", "web-1"}, {"tuned", "nat-1"}, {"ftp", "ftp-1"}, {"translate", "web-1"},
		{"fleet", "api-1"}, {"fleet", "web-1"}, {"fleet", "nat-1"}, {"fleet", "db-1"},
	} {
		for kind, rules := range map[string]string{"bare": "", "stateful": stateful} {
			name := tt.example + "-" + tt.host + "-" + kind
			t.Run(name, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "snapshot.json")
				if err := hostWith(t, tt.host, rules).WriteFile(path); err != nil {
					t.Fatal(err)
				}
				var stdout, stderr bytes.Buffer
				e := &env{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, width: 80}
				status := run(context.Background(), []string{"plan", "--snapshot", path, "../../examples/" + tt.example + ".hcl"}, e)
				if status != exitOK && status != exitBlocked {
					t.Errorf("exit status %d", status)
				}
				golden.Check(t, "examples/"+name+".txt", append(stdout.Bytes(), stderr.Bytes()...))
			})
		}
	}
}

// hostWith is a Debian host with saved rules as they are in the kernel, and
// the init script and settings of its earlier life.
func hostWith(t *testing.T, name, rules string) *snapshot.Snapshot {
	t.Helper()
	s, err := snapshot.ReadFile("testdata/snapshot/web.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Host.Name = name
	s.Conntrack.Kind = host.ConntrackModule
	if _, err := iptables.Parse(host.IPv4, rules); err != nil {
		t.Fatal(err)
	}
	for i := range s.Rules {
		if s.Rules[i].Family == host.IPv4 {
			s.Rules[i].Text = rules
		}
	}
	for i, f := range s.Files {
		if f.Kind == snapshot.KindRulesV4 {
			s.Files[i].File.Content = rules
		}
	}
	return s
}
