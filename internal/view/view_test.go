package view

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
)

func at(line int) declared.Pos { return declared.Pos{File: "examples/host.hcl", Line: line} }

func plan(mode declared.Mode, block string) planner.Plan {
	return planner.Plan{
		Host: host.Host{Name: "web-1", Kernel: "6.1.0-18-amd64", MachineID: "secret"},
		Mode: mode, Block: block, Source: at(12),
	}
}

func emptyPlan() planner.Plan { return plan(declared.Notrack, "api-client") }

func notrackPlan() planner.Plan {
	p := plan(declared.Notrack, "api-client")
	before := []string{
		":INPUT DROP", ":FORWARD DROP", ":OUTPUT ACCEPT", ":OPS - ",
		"-A INPUT -i lo -j ACCEPT",
		"-A INPUT -s 198.51.100.0/24 -j DROP",
		"-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT",
		"-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
		"-A INPUT -p icmp -j ACCEPT",
		"-A INPUT -j OPS",
		"-A OPS -p udp -m udp --dport 161 -j ACCEPT",
		"-A OPS -j RETURN",
	}
	in := `-A CTPLAN-INPUT -s 54.239.25.200/32 -p tcp -m tcp --sport 443 ! --syn -j ACCEPT`
	out := `-A CTPLAN-OUTPUT -d 54.239.25.200/32 -p tcp -m tcp --dport 443 -j ACCEPT`
	after := []string{
		":INPUT DROP", ":FORWARD DROP", ":OUTPUT ACCEPT", ":CTPLAN-INPUT -", ":CTPLAN-OUTPUT -", ":OPS - ",
		"-A INPUT -i lo -j ACCEPT",
		"-A INPUT -s 198.51.100.0/24 -j DROP",
		"-A INPUT -j CTPLAN-INPUT",
		"-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT",
		"-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
		"-A INPUT -p icmp -j ACCEPT",
		"-A INPUT -j OPS",
		"-A OUTPUT -j CTPLAN-OUTPUT",
		in, out,
		"-A OPS -p udp -m udp --dport 161 -j ACCEPT",
		"-A OPS -j RETURN",
	}
	p.Changes = []change.Change{
		&change.RulesChange{
			M: change.Meta{
				Address: "iptables.ipv4.filter", Action: change.Update,
				Reasons: []string{"replies that are no longer tracked match no state rule, so each declared flow needs an accept of its own"},
				Sources: []declared.Pos{at(20)},
			},
			Family: host.IPv4, Backend: host.NFT, Table: "filter",
			Before: before, After: after,
			Origin: map[string]declared.Pos{in: at(20), out: at(20)},
		},
		&change.RulesChange{
			M: change.Meta{
				Address: "iptables.ipv4.raw", Action: change.Create,
				Reasons: []string{"declared traffic leaves connection tracking, both ways"},
				Sources: []declared.Pos{at(16)},
			},
			Family: host.IPv4, Backend: host.NFT, Table: "raw",
			After: []string{
				":PREROUTING ACCEPT", ":OUTPUT ACCEPT", ":CTPLAN-OUTPUT -", ":CTPLAN-PREROUTING -",
				"-A PREROUTING -j CTPLAN-PREROUTING", "-A OUTPUT -j CTPLAN-OUTPUT",
				"-A CTPLAN-OUTPUT -p tcp -j CT --notrack", "-A CTPLAN-PREROUTING -p tcp -j CT --notrack",
			},
			Origin: map[string]declared.Pos{
				"-A CTPLAN-OUTPUT -p tcp -j CT --notrack":     at(16),
				"-A CTPLAN-PREROUTING -p tcp -j CT --notrack": at(16),
			},
		},
	}
	p.Warnings = []change.Warning{{
		Address: "iptables.ipv4", Text: "no saved rules file on this host: the rules do not survive a reboot; create /etc/iptables/rules.v4 with iptables-save, then apply again",
	}}
	return p
}

func tunedPlan() planner.Plan {
	p := plan(declared.Tuned, "nat-gateway")
	file := func(path, content string) host.File {
		return host.File{Path: path, Exists: true, Content: content, Mode: 0o644}
	}
	link := file("/etc/sysctl.d/99-sysctl.conf", "# kept by hand\n\nnet.ipv4.ip_forward = 1\nnet.netfilter.nf_conntrack_max=65536 # small\nkernel.panic = 10\nvm.swappiness\t= 10\nfs.file-max = 100000\nlast = 1")
	link.Target = "/etc/sysctl.conf"
	linkAfter := link
	linkAfter.Content = strings.Replace(link.Content, "max=65536 # small", "max=524288", 1)
	p.Changes = []change.Change{
		&change.FileChange{
			M: change.Meta{
				Address: "file./etc/modprobe.d/netfilter.conf", Action: change.Create,
				Reasons: []string{"the hash size must survive the next load of nf_conntrack"}, Sources: []declared.Pos{at(18)},
			},
			Before: host.File{Path: "/etc/modprobe.d/netfilter.conf"},
			After:  file("/etc/modprobe.d/netfilter.conf", "options nf_conntrack hashsize=131072\n"),
		},
		&change.HashsizeChange{
			M: change.Meta{
				Address: "sysfs.nf_conntrack.hashsize", Action: change.Update,
				Reasons:  []string{"131072 buckets are declared"},
				Sources:  []declared.Pos{at(18)},
				Disrupts: "resizing takes every conntrack lock with bottom halves off: packets wait while 65536 buckets move",
			},
			Before: 65536, After: 131072,
		},
		&change.SysctlChange{
			M: change.Meta{
				Address: "sysctl.net.netfilter.nf_conntrack_max", Action: change.Update,
				Reasons: []string{"524288 entries are declared"}, Sources: []declared.Pos{at(17)},
			},
			Key: "net.netfilter.nf_conntrack_max", Before: "65536", After: "524288",
		},
		&change.FileChange{
			M: change.Meta{
				Address: "file./etc/sysctl.d/99-sysctl.conf", Action: change.Update,
				Reasons: []string{"the value must survive a reboot"}, Sources: []declared.Pos{at(17)},
			},
			Before: link, After: linkAfter,
		},
		&change.FileChange{
			M: change.Meta{
				Address: "file./etc/modprobe.d/ctplan-block.conf", Action: change.Delete,
				Reasons: []string{"nf_conntrack must be able to load again"}, Sources: []declared.Pos{at(13)},
			},
			Before: file("/etc/modprobe.d/ctplan-block.conf", "install nf_conntrack /bin/false\n"),
			After:  host.File{Path: "/etc/modprobe.d/ctplan-block.conf"},
		},
		&change.ModuleChange{
			M: change.Meta{
				Address: "module.nf_conntrack", Action: change.Run,
				Reasons: []string{"its sysctls exist only while it is loaded"}, Sources: []declared.Pos{at(13)},
			},
			Module: "nf_conntrack", Load: true,
		},
		&change.ServiceChange{
			M: change.Meta{
				Address: "service.iptables", Action: change.Run,
				Reasons: []string{"a restart loads nf_conntrack anew"}, Sources: []declared.Pos{at(19)},
				Disrupts: "there are no rules for a moment",
			},
			Step: change.ServiceStep{
				Commands:   [][]string{{"/etc/init.d/ip6tables", "stop"}, {"/etc/init.d/iptables", "restart"}, {"/etc/init.d/ip6tables", "start"}},
				Rules:      []change.ServedRules{{Family: host.IPv4, Backend: host.NFT}, {Family: host.IPv6, Backend: host.NFT}},
				KeepsRules: true,
			},
		},
		&change.SysctlChange{
			M: change.Meta{
				Address: "sysctl.net.netfilter.nf_conntrack_udp_timeout", Action: change.Update,
				Reasons: []string{"a reload of nf_conntrack resets it"}, Sources: []declared.Pos{at(17)},
			},
			Key: "net.netfilter.nf_conntrack_udp_timeout", Before: "30", After: "30",
		},
	}
	p.Forecast = forecast()
	return p
}

func forecast() *boot.Forecasts {
	none := boot.Rules{Family: host.IPv6, State: boot.RulesNone, Source: "no saved rules file"}
	const block = "/etc/modprobe.d/ctplan-block.conf:1 keeps nf_conntrack from loading"
	return &boot.Forecasts{
		Now: boot.Forecast{Native: []boot.Native{},
			Module: boot.Module{State: boot.ModuleUnloaded, Source: block}, Sysctls: []boot.Value{},
			Rules: []boot.Rules{{Family: host.IPv4, File: "/etc/iptables/rules.v4", State: boot.RulesFail, Source: "/etc/iptables/rules.v4:5 needs nf_conntrack: " + block}, none},
		},
		After: boot.Forecast{Native: []boot.Native{},
			Module:   boot.Module{State: boot.ModuleLoaded, Source: "/etc/modules-load.d/netfilter.conf:1"},
			Max:      &boot.Value{Known: true, Value: 524288, Source: "/etc/sysctl.conf:4"},
			Hashsize: &boot.Value{Known: true, Value: 131072, Source: "/etc/modprobe.d/netfilter.conf:1"},
			Sysctls:  []boot.Value{{Key: "net.netfilter.nf_conntrack_udp_timeout", Source: "/etc/sysctl.d/x.conf:1 sets net.netfilter.nf_conntrack_udp_timeout, which the kernel may refuse"}},
			Rules:    []boot.Rules{{Family: host.IPv4, File: "/etc/iptables/rules.v4", State: boot.RulesRestored, Rules: 5, Source: "netfilter-persistent"}, none},
		},
	}
}

func hostileForecast(s string) *boot.Forecasts {
	f := func(n int64) boot.Forecast {
		v := boot.Value{Key: s, Known: n == 1, Value: n, Source: s}
		return boot.Forecast{Native: []boot.Native{},
			Module: boot.Module{State: boot.ModuleState(s), Source: s}, Max: &v, Hashsize: &v, Sysctls: []boot.Value{v},
			Rules: []boot.Rules{{Family: host.Family(s), File: s, State: boot.RulesRestored, Rules: int(n), Source: s}},
		}
	}
	return &boot.Forecasts{Now: f(1), After: f(2)}
}

func blockedPlan() planner.Plan {
	p := plan(declared.Disabled, "api")
	p.Blocks = []change.Block{
		{
			Risk: declared.RiskNAT, Address: "iptables.ipv4.nat",
			Where:  "-A POSTROUTING -o eth0 -j MASQUERADE (line 12 of iptables-save)",
			Why:    "address translation is connection tracking: without it, hosts behind this one lose the network",
			Remedy: `use mode tuned, or allow_risk = ["nat"] to have the rule removed`, Override: true, Source: at(12),
		},
		{
			Risk: declared.RiskStatefulRules, Address: "file./etc/sysconfig/iptables",
			Where:  "/etc/sysconfig/iptables:9: -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT",
			Why:    "one rule that the kernel refuses makes the whole file fail at boot: the host comes up without its firewall",
			Remedy: `set stateful_rules = "remove" and declare what to accept instead`, Override: true, Source: at(12),
		},
		{
			Risk: declared.RiskNoConntrack, Address: "module.nf_conntrack",
			Where: "/lib/modules/6.1.0-18-amd64", Why: "this kernel has no connection tracking, so there is nothing to switch off",
			Remedy: "take the block away", Source: at(13),
		},
	}
	p.Changes = tunedPlan().Changes
	p.Warnings = []change.Warning{{Text: "could not read /etc/docker: whether containers need nat is not known", Source: at(12)}}
	return p
}

func driftPlan() planner.Plan {
	p := notrackPlan()
	p.Warnings = nil
	r := p.Changes[0].(*change.RulesChange)
	r.Before, r.M.Reasons = nil, []string{"the jump to CTPLAN-INPUT does not stand where it should"}
	for _, l := range r.After {
		if l != "-A INPUT -j CTPLAN-INPUT" {
			r.Before = append(r.Before, l)
		}
	}
	r.Before = append(r.Before, "-A CTPLAN-INPUT -s 203.0.113.9/32 -j ACCEPT")
	p.Changes = p.Changes[:1]
	return p
}

func unmanagedPlan() planner.Plan {
	return planner.Plan{
		Host: host.Host{Name: "db-7"},
		Warnings: []change.Warning{{
			Text: "no conntrack block matches db-7, so nothing is done; its chains CTPLAN-INPUT and CTPLAN-OUTPUT are still there: a block with mode = \"notrack\" and nothing in it takes them away",
		}},
	}
}

const nasty = "x\x1b[2J\x9b31m\u202e\u2066\x00\x7f\xff\r\n```\n</details><script>@octocat #1 [a](http://evil.example) |`` ~~ <!-- ![i](x)"

func hostilePlan(s string) planner.Plan {
	pos := declared.Pos{File: s, Line: 1}
	m := change.Meta{Address: s, Action: change.Update, Reasons: []string{s}, Sources: []declared.Pos{pos}, Disrupts: s}
	p := planner.Plan{Host: host.Host{Name: s, Kernel: s}, Mode: declared.Mode(s), Block: s, Source: pos}
	p.Changes = []change.Change{
		&change.RulesChange{M: m, Backend: host.Backend(s), Table: s, Before: []string{s + "1"}, After: []string{s}, Origin: map[string]declared.Pos{s: pos}},
		&change.FileChange{M: m, Before: host.File{Path: s, Exists: true, Content: "old\n" + s, Target: s}, After: host.File{Path: s, Exists: true, Content: s + "\n\t" + s, Target: s}},
		&change.SysctlChange{M: m, Key: s, Before: s, After: s},
		&change.ModuleChange{M: m, Module: s},
		&change.ServiceChange{M: m, Step: change.ServiceStep{Commands: [][]string{{s, s}}, Rules: []change.ServedRules{{Family: host.Family(s)}}}},
	}
	p.Warnings = []change.Warning{{Address: s, Text: s, Source: pos}}
	g := impact.FlowGroup{Result: impact.FlowLost, Operator: true, Service: s, Family: host.Family(s), Count: 9, Before: s, After: s, Stage: s, Examples: []string{s, s}}
	p.Impact = &impact.Impact{Lost: 9, Groups: []impact.FlowGroup{g}, Services: []impact.FlowGroup{g}, Exposed: []impact.Exposure{{Family: host.Family(s), Rule: s, Before: s, What: s, Source: pos}}}
	p.Forecast = hostileForecast(s)
	return p
}

func impactPlan() planner.Plan {
	p := notrackPlan()
	p.Impact = &impact.Impact{
		Lost: 13, Unknown: 2, Gained: 1, Kept: 4120,
		Groups: []impact.FlowGroup{
			{Result: impact.FlowLost, Operator: true, Service: "tcp/22 in", Family: host.IPv4, Count: 1, Before: "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT", After: "policy DROP of INPUT", Examples: []string{"198.51.100.7:50122 -> 192.0.2.10:22"}},
			{Result: impact.FlowLost, Service: "udp/53 out", Family: host.IPv4, Count: 12, Before: "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT", After: "policy DROP of INPUT", Stage: "iptables.ipv4.raw",
				Examples: []string{"192.0.2.10:40001 -> 192.0.2.53:53", "192.0.2.10:40002 -> 192.0.2.53:53"}},
			{Result: impact.FlowUnknown, Service: "tcp/443 out", Family: host.IPv6, Count: 2, After: "-A INPUT -m limit --limit 5/sec -j ACCEPT", Examples: []string{"[2001:db8::1]:4 -> [2001:db8::2]:443"}},
			{Result: impact.FlowGained, Service: "tcp/25 out", Family: host.IPv4, Count: 1, Before: "-A OUTPUT -j DROP", After: "-A CTPLAN-OUTPUT -p tcp -j ACCEPT", Examples: []string{"192.0.2.10:4 -> 192.0.2.25:25"}},
			{Result: impact.FlowKept, Service: "tcp/443 in", Family: host.IPv4, Count: 4120, Examples: []string{"192.0.2.99:5 -> 192.0.2.10:443"}},
		},
		Services: []impact.FlowGroup{}, Exposed: []impact.Exposure{},
	}
	return p
}

func hostileBlocked(s string) planner.Plan {
	p := hostilePlan(s)
	p.Blocks = []change.Block{{Risk: declared.Risk(s), Address: s, Where: s, Why: s, Remedy: s, Override: true, Source: declared.Pos{File: s, Line: 2}}}
	return p
}

func longPlan() planner.Plan {
	p := plan(declared.Notrack, "many")
	c := &change.RulesChange{
		M:       change.Meta{Address: "iptables.ipv6.filter", Action: change.Update, Reasons: []string{"1000 accepts"}, Sources: []declared.Pos{at(30)}},
		Backend: host.Legacy, Table: "filter", Origin: map[string]declared.Pos{},
		Before: []string{":INPUT ACCEPT"}, After: []string{":INPUT ACCEPT", ":CTPLAN-INPUT -", "-A INPUT -j CTPLAN-INPUT"},
	}
	for i := range 1000 {
		rule := fmt.Sprintf("-A CTPLAN-INPUT -s 2001:db8::%x/128 -j ACCEPT", i)
		c.After, c.Origin[rule] = append(c.After, rule), at(30)
	}
	p.Changes = []change.Change{c}
	return p
}

func TestGolden(t *testing.T) {
	tests := []struct {
		name string
		plan planner.Plan
		verb Verb
	}{
		{"empty", emptyPlan(), Plan},
		{"notrack", notrackPlan(), Plan},
		{"tuned", tunedPlan(), Apply},
		{"blocked", blockedPlan(), Plan},
		{"impact", impactPlan(), Plan},
		{"drift", driftPlan(), Drift},
		{"drift-blocked", blockedPlan(), Drift},
		{"drift-none", emptyPlan(), Drift},
		{"unmanaged", unmanagedPlan(), Plan},
		{"hostile", hostilePlan(nasty), Plan},
		{"hostile-blocked", hostileBlocked(nasty), Plan},
		{"long", longPlan(), Plan},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var plain, colour, md, js bytes.Buffer
			o := Options{Verb: tt.verb}
			if err := Text(&plain, tt.plan, o); err != nil {
				t.Fatal(err)
			}
			o.Color = true
			if err := Text(&colour, tt.plan, o); err != nil {
				t.Fatal(err)
			}
			if err := Markdown(&md, tt.plan, o); err != nil {
				t.Fatal(err)
			}
			if err := JSON(&js, tt.plan, o); err != nil {
				t.Fatal(err)
			}
			golden.Check(t, tt.name+".txt", plain.Bytes())
			golden.Check(t, tt.name+".md", md.Bytes())
			if tt.name == "long" {
				return // the rest says nothing new at great length
			}
			golden.Check(t, tt.name+".color", colour.Bytes())
			golden.Check(t, tt.name+".json", js.Bytes())
			if stripSGR(colour.String()) != plain.String() {
				t.Error("colour changes more than the colour")
			}
		})
	}
}

func TestGoldenFleet(t *testing.T) {
	plans := []planner.Plan{notrackPlan(), blockedPlan(), emptyPlan()}
	var text, md, js bytes.Buffer
	if err := FleetText(&text, plans, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := FleetMarkdown(&md, plans, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := FleetJSON(&js, plans, Options{}); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "fleet.txt", text.Bytes())
	golden.Check(t, "fleet.md", md.Bytes())
	golden.Check(t, "fleet.json", js.Bytes())
}

func TestSummary(t *testing.T) {
	tests := []struct {
		plan planner.Plan
		verb Verb
		want string
	}{
		{emptyPlan(), Plan, "no changes: web-1 is as examples/host.hcl:12 declares"},
		{emptyPlan(), Drift, "no drift: web-1 is as examples/host.hcl:12 declares"},
		{emptyPlan(), Applied, "nothing to do: web-1 is as examples/host.hcl:12 declares"},
		{unmanagedPlan(), Plan, "no changes: no conntrack block matches db-7"},
		{tunedPlan(), "", "plan: 1 to create, 4 to update, 1 to delete, 2 to run"},
		{tunedPlan(), Applied, "applied: 1 created, 4 updated, 1 deleted, 2 run"},
		{driftPlan(), Drift, "drift: 1 object differs from what examples/host.hcl:12 declares"},
		{blockedPlan(), Plan, "blocked: 3 reasons, 8 changes held back"},
		{blockedPlan(), Drift, "drift: 8 objects differ; apply is blocked: 3 reasons"},
	}
	for _, tt := range tests {
		if got := Summary(tt.plan, tt.verb); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.verb, got, tt.want)
		}
	}
}

// TestFullShowsAll pins that nothing is cut with Full, and nothing is cut
// silently without.
func TestFullShowsAll(t *testing.T) {
	var full, short bytes.Buffer
	if err := Text(&full, longPlan(), Options{Full: true}); err != nil {
		t.Fatal(err)
	}
	if err := Text(&short, longPlan(), Options{}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(full.String(), "2001:db8::"); n != 1000 {
		t.Errorf("full shows %d of 1000 rules", n)
	}
	if n := strings.Count(short.String(), "\n"); n > 60 {
		t.Errorf("short has %d lines", n)
	}
	if !strings.Contains(short.String(), "--full shows all") {
		t.Error("cut without a word")
	}
}

func TestClean(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{`plain "text" \ß→`, `plain "text" \ß→`},
		{"\x1b[31m", `\x1b[31m`},
		{"a\nb\r\tc", `a\nb\r\tc`},
		{"\u009b1m", `\x9b1m`},
		{"\xff\xc3", `\xff\xc3`},
		{"\u202eabc\u2066\u200b\ufeff", `\u202eabc\u2066\u200b\ufeff`},
		{"\U000e0041", `\U000e0041`},
		{"\ufffd", "\ufffd"},
	}
	for _, tt := range tests {
		if got := Clean(tt.in); got != tt.want {
			t.Errorf("Clean(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// TestJSONRoundTrip pins that escaping changes no string.
func TestJSONRoundTrip(t *testing.T) {
	want := "\u202e\u009b\x7f\U000e0041\u2028\\\"<&>\x00"
	var b bytes.Buffer
	if err := EncodeJSON(&b, want); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got %q, want %q from %s", got, want, b.String())
	}
}

// TestJSONDocumented holds docs/json.md to naming every field.
func TestJSONDocumented(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "json.md"))
	if err != nil {
		t.Fatal(err)
	}
	plans := []planner.Plan{notrackPlan(), tunedPlan(), blockedPlan(), hostilePlan("\xff")}
	var one, fleet bytes.Buffer
	if err := JSON(&one, notrackPlan(), Options{}); err != nil {
		t.Fatal(err)
	}
	if err := FleetJSON(&fleet, plans, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(one.String()+fleet.String(), "\n") {
		field, _, ok := strings.Cut(strings.TrimSpace(line), `": `)
		if name := strings.TrimPrefix(field, `"`); ok && name != field && !bytes.Contains(doc, []byte(name)) {
			t.Errorf("docs/json.md does not name the field %q", name)
		}
	}
}
