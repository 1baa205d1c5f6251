package internal_test

import (
	"cmp"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/schema"
)

const stateful = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// bootKinds are hosts by how they boot: with the link to sysctl.conf that older
// distributions have, without, and without systemd.
var bootKinds = []struct {
	name, init, as, sysctls string
}{
	{"systemd", host.InitSystemd, "/etc/sysctl.d/99-sysctl.conf", "/etc/sysctl.conf"},
	{"systemd-no-link", host.InitSystemd, "", "/etc/sysctl.d/99-netfilter.conf"},
	{"sysv", host.InitSysv, "", "/etc/sysctl.conf"},
}

// bootHost is a stateful server that has never heard of ctplan.
func bootHost(init, as string) *snapshot.Snapshot {
	file := func(kind snapshot.Kind, name, content string) snapshot.File {
		return snapshot.File{Kind: kind, File: host.File{Path: name, Exists: content != "", Content: content}}
	}
	conf := file(snapshot.KindSysctl, "/etc/sysctl.conf", "net.ipv4.ip_forward = 0\n")
	conf.As = as
	return &snapshot.Snapshot{
		Host:      host.Host{Name: "h", Kernel: "6.1.0-18-amd64", CPUs: 1, Memory: 8 << 30, PageSize: 4096, PointerSize: 8},
		Conntrack: host.Conntrack{Kind: host.ConntrackModule, Loaded: true, Hashsize: 262144, InitialNetns: true, Max: 262144},
		Modules:   []host.Module{{Name: "nf_conntrack", Refs: 1, By: []string{"xt_conntrack"}}, {Name: "xt_conntrack"}},
		Sysctls: map[string]host.Sysctl{
			"net.netfilter.nf_conntrack_max":         {Value: "262144", Writable: true},
			"net.netfilter.nf_conntrack_udp_timeout": {Value: "30", Writable: true},
		},
		Rules: []snapshot.Rules{{Family: host.IPv4, Backend: host.NFT, Primary: true, Text: stateful}, {Family: host.IPv6, Backend: host.NFT, Primary: true, Text: stateful}},
		Boot:  &host.Boot{Init: init, Services: []string{"netfilter-persistent"}},
		Files: []snapshot.File{
			file(snapshot.KindSysctl, "/usr/lib/sysctl.d/50-default.conf", "kernel.sysrq = 16\n"), conf,
			file(snapshot.KindModprobe, "/etc/modprobe.d/netfilter.conf", ""),
			file(snapshot.KindModulesLoad, "/etc/modules-load.d/netfilter.conf", ""),
			file(snapshot.KindRulesV4, "/etc/iptables/rules.v4", stateful), file(snapshot.KindRulesV6, "/etc/iptables/rules.v6", stateful),
		},
	}
}

// bootPlan plans as the commands do.
func bootPlan(t *testing.T, d declared.Desired, s *snapshot.Snapshot) planner.Plan {
	t.Helper()
	live, err := s.Live()
	if err != nil {
		t.Fatal(err)
	}
	p, err := snapshot.Plan(d, live)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// carryOut makes of the host what apply would.
func carryOut(s *snapshot.Snapshot, p planner.Plan) {
	for _, c := range p.Changes {
		switch c := c.(type) {
		case *change.FileChange:
			if i := slices.IndexFunc(s.Files, func(f snapshot.File) bool { return f.File.Path == c.After.Path }); i >= 0 {
				s.Files[i].File = c.After
				continue
			}
			s.Files = append(s.Files, snapshot.File{Kind: snapshot.KindSysctl, File: c.After})
			slices.SortStableFunc(s.Files, func(a, b snapshot.File) int { // as boot reads them
				if a.Kind != snapshot.KindSysctl || b.Kind != snapshot.KindSysctl {
					return 0
				}
				return strings.Compare(path.Base(cmp.Or(a.As, a.File.Path)), path.Base(cmp.Or(b.As, b.File.Path)))
			})
		case *change.SysctlChange, *change.HashsizeChange:
			setSize(s, c)
		case *change.ModuleChange:
			s.Conntrack.Loaded = c.Load
			s.Modules, s.Sysctls = []host.Module{}, map[string]host.Sysctl{}
		}
	}
	// The kernel has what the saved files say.
	for i := range s.Rules {
		kind := map[host.Family]snapshot.Kind{host.IPv4: snapshot.KindRulesV4, host.IPv6: snapshot.KindRulesV6}[s.Rules[i].Family]
		for _, f := range s.Files {
			if f.Kind == kind {
				s.Rules[i].Text = f.File.Content
			}
		}
	}
}

// TestBoot takes hosts to each mode: the forecast comes true when the host is
// read again, nothing is left to change and there is nothing to warn of. Then
// it takes away one thing at a time that boot needs, while the live state stays
// right: the plan finds the wrong boot, mends that file and nothing else.
func TestBoot(t *testing.T) {
	for _, boot := range bootKinds {
		for _, hcl := range modes {
			begin := bootHost(boot.init, boot.as)
			conf, diags := schema.Load([]schema.Source{{Name: "main.hcl", Content: []byte(hcl)}}, schema.Vars{}, &schema.Facts{Host: begin.Host, Conntrack: begin.Conntrack})
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			d, diags := conf.For(begin.Host.Name)
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			render(&d, host.Live{})
			settled := func(t *testing.T) *snapshot.Snapshot {
				s := bootHost(boot.init, boot.as)
				p := bootPlan(t, d, s)
				if p.Empty() || p.Blocked() || len(p.Warnings) > 0 {
					t.Fatalf("%+v\n%+v", p.Blocks, p.Warnings)
				}
				carryOut(s, p)
				again := bootPlan(t, d, s)
				if !again.Empty() || len(again.Warnings) > 0 {
					t.Fatalf("not settled: %q %+v %+v", changed(again), again.Blocks, again.Warnings)
				}
				if !reflect.DeepEqual(again.Forecast.Now, again.Forecast.After) || sense(again.Forecast.Now) != sense(p.Forecast.After) {
					t.Fatalf("boots into %s\nthe forecast was %s", sense(again.Forecast.Now), sense(p.Forecast.After))
				}
				return s
			}
			t.Run(fmt.Sprintf("%s/%s", boot.name, d.Mode), func(t *testing.T) {
				sound := bootPlan(t, d, settled(t)).Forecast.Now
				type damage struct{ what, path, old, new string }
				damages := map[declared.Mode][]damage{
					declared.Tuned: {
						{"max", boot.sysctls, "net.netfilter.nf_conntrack_max = 200000\n", ""},
						{"max, another", boot.sysctls, "net.netfilter.nf_conntrack_max = 200000\n", "net.netfilter.nf_conntrack_max = 9\n"},
						{"timeout", boot.sysctls, "net.netfilter.nf_conntrack_udp_timeout = 20\n", ""},
						{"options", "/etc/modprobe.d/netfilter.conf", "options nf_conntrack hashsize=50000\n", ""},
						{"module", "/etc/modules-load.d/netfilter.conf", "nf_conntrack\n", "#nf_conntrack\n"},
						{"blacklist", "/etc/modprobe.d/netfilter.conf", "options", "blacklist nf_conntrack\noptions"},
						{"block", "/etc/modprobe.d/netfilter.conf", "options", "install nf_conntrack /bin/true\noptions"},
					},
					declared.Notrack: {
						{"saved rules", "/etc/iptables/rules.v4", "", stateful},
						{"saved rules of IPv6", "/etc/iptables/rules.v6", "", stateful},
						{"block", "/etc/modprobe.d/netfilter.conf", "", "install nf_conntrack /bin/false\n"},
					},
					declared.Disabled: {
						{"block", "/etc/modprobe.d/netfilter.conf", "install nf_conntrack /bin/false\n", "install nf_nat /bin/false\n"},
						{"saved rules", "/etc/iptables/rules.v6", "", stateful},
						{"module", "/etc/modules-load.d/netfilter.conf", "", "nf_conntrack\n"},
						{"empty nat table", "/etc/iptables/rules.v4", "*filter\n", "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n"},
						{"nat rule", "/etc/iptables/rules.v6", "*filter\n", "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n*filter\n"},
					},
				}[d.Mode]
				if len(damages) == 0 {
					t.Fatal("no damages")
				}
				for _, c := range damages {
					if c.what == "blacklist" && boot.init == host.InitSysv {
						continue // nobody heeds it
					}
					s := settled(t)
					i := slices.IndexFunc(s.Files, func(f snapshot.File) bool { return f.File.Path == c.path })
					f := &s.Files[i].File
					f.Exists = true
					switch {
					case c.old == "":
						f.Content = c.new
					case !strings.Contains(f.Content, c.old):
						t.Fatalf("%s: %q", c.what, f.Content)
					default:
						f.Content = strings.Replace(f.Content, c.old, c.new, 1)
					}
					p := bootPlan(t, d, s)
					if got := changed(p); !slices.Equal(got, []string{c.path}) || p.Blocked() || len(p.Warnings) > 0 {
						t.Errorf("%s: the plan changes %q, want %s: %+v %+v", c.what, got, c.path, p.Blocks, p.Warnings)
					}
					// A module that only modules-load.d names is kept out by the block.
					quiet := d.Mode == declared.Disabled && c.what == "module" || d.Mode == declared.Disabled && c.what == "block"
					if !quiet && sense(p.Forecast.Now) == sense(sound) {
						t.Errorf("%s: the host boots as declared: %s", c.what, sense(sound))
					}
					if sense(p.Forecast.After) != sense(sound) {
						t.Errorf("%s: after the plan the host boots into %s\nwant %s", c.what, sense(p.Forecast.After), sense(sound))
					}
				}
			})
		}
	}
}

// changed lists the paths of changed files, and the addresses of what else
// changes.
func changed(p planner.Plan) []string {
	var out []string
	for _, c := range p.Changes {
		if f, ok := c.(*change.FileChange); ok {
			out = append(out, f.After.Path)
			continue
		}
		out = append(out, c.Meta().Address)
	}
	return out
}

// sense is a forecast without lines, which edits move.
func sense(f boot.Forecast) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", f.Module.State)
	for _, v := range f.Sysctls {
		fmt.Fprintf(&b, ", %s %d %t", v.Key, v.Value, v.Known)
	}
	for _, v := range []*boot.Value{f.Max, f.Hashsize} {
		if v != nil {
			fmt.Fprintf(&b, ", %d %t", v.Value, v.Known)
		}
	}
	for _, r := range f.Rules {
		fmt.Fprintf(&b, ", %s %s %d", r.File, r.State, r.Rules)
	}
	return b.String()
}

// setSize carries out a change of a size or of another value of the kernel.
func setSize(s *snapshot.Snapshot, c change.Change) {
	switch c := c.(type) {
	case *change.SysctlChange:
		s.Sysctls[c.Key] = host.Sysctl{Value: c.After, Writable: true}
		if c.Key == "net.netfilter.nf_conntrack_max" {
			fmt.Sscan(c.After, &s.Conntrack.Max)
		}
	case *change.HashsizeChange:
		s.Conntrack.Hashsize = c.After
	}
}
