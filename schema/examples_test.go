package schema_test

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/schema"
)

// text renders diagnostics as a person sees them.
func text(t testing.TB, d schema.Diagnostics) string {
	t.Helper()
	var b bytes.Buffer
	if err := d.WriteText(&b, 78, false); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func facts(name string) *schema.Facts {
	return &schema.Facts{
		Host:      host.Host{Name: name, CPUs: 16, Memory: 8 << 30, Kernel: "6.1.0", MachineID: "0123456789abcdef0123456789abcdef"},
		Conntrack: host.Conntrack{Count: 1000, Max: 262144, Hashsize: 65536},
	}
}

func TestExamples(t *testing.T) {
	hosts := map[string][]string{
		"disabled":  {"web-1"},
		"fleet":     {"api-1.example.net", "worker-7", "web-1", "cdn-3", "NAT-1", "db-1"},
		"ftp":       {"files"},
		"notrack":   {"anything"},
		"translate": {"anything"},
		"tuned":     {"gw"},
	}
	paths, err := filepath.Glob("../examples/*.hcl")
	if err != nil || len(paths) != len(hosts) {
		t.Fatalf("examples: %v %v", paths, err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".hcl")
		t.Run(name, func(t *testing.T) {
			sources, err := schema.ReadSources(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, diags := schema.Load(sources, schema.Vars{}, nil); len(diags.List()) > 0 {
				t.Errorf("without facts:\n%s", text(t, diags))
			}
			formatted, diags := schema.Format(sources[0])
			if diags.HasErrors() || !bytes.Equal(formatted, sources[0].Content) {
				t.Errorf("not in canonical layout:\n%s", cmp.Diff(string(sources[0].Content), string(formatted)))
			}
			got := map[string]declared.Desired{}
			for _, host := range hosts[name] {
				config, diags := schema.Load(sources, schema.Vars{}, facts(host))
				if len(diags.List()) > 0 {
					t.Fatalf("for %s:\n%s", host, text(t, diags))
				}
				desired, diags := config.For(host)
				if len(diags.List()) > 0 {
					t.Fatalf("for %s:\n%s", host, text(t, diags))
				}
				got[host] = desired
				// Translated rules go on letting in what they let in.
				if (desired.Mode == declared.Notrack || desired.Mode == declared.Disabled) && desired.StatefulRules != declared.TranslateStateful {
					neverLocksOut(t, desired)
				}
			}
			out, err := json.MarshalIndent(got, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, "examples/"+name+".json", append(out, '\n'))
		})
	}
}

// neverLocksOut checks what every host that drops by default needs.
func neverLocksOut(t *testing.T, d declared.Desired) {
	t.Helper()
	need := map[string]func(declared.Traffic) bool{
		"loopback": func(a declared.Traffic) bool { return a.Interface == "lo" && a.Protocol == "" },
		"ssh": func(a declared.Traffic) bool {
			return a.Protocol == "tcp" && slices.Contains(a.LocalPorts, host.PortRange{From: 22, To: 22}) && a.Initiator != declared.LocalSide
		},
		"dns":                 func(a declared.Traffic) bool { return a.Protocol == "udp" && len(a.RemotePorts) == 1 },
		"path MTU":            func(a declared.Traffic) bool { return a.Protocol == "icmp" },
		"neighbour discovery": func(a declared.Traffic) bool { return a.Protocol == "ipv6-icmp" },
	}
	for what, has := range need {
		if !slices.ContainsFunc(d.Accept, func(a declared.Traffic) bool { return a.Direction == declared.Both && has(a) }) {
			t.Errorf("%s: nothing accepts %s", d.Block, what)
		}
	}
}
