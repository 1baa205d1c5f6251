package verify

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/census"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/kernlog"
)

var (
	booted  = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	changed = booted.Add(24 * time.Hour)
)

// of returns what the check came to, and its words.
func of(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no check %q among %v", name, names(checks))
	}
	return checks[i]
}

func names(checks []Check) (out []string) {
	for _, c := range checks {
		out = append(out, c.Name)
	}
	return out
}

// silent is a log without a gap in which nothing is said.
func silent() *kernlog.Full {
	return &kernlog.Full{Reach: booted, Sources: []kernlog.Source{{Name: "/dev/kmsg", From: booted, To: changed.Add(time.Hour)}, {Name: "journal", Unread: "there is no journalctl", Absent: true}}}
}

func stats(drop, chain uint64) *flows.Stats {
	return &flows.Stats{From: "netlink", CPUs: []flows.CPUStats{
		{CPU: 0, Counters: flows.Counters{"drop": drop, "early_drop": 0, "insert_failed": 0, "chaintoolong": chain}},
		{CPU: 1, Counters: flows.Counters{"drop": 0, "early_drop": 0, "insert_failed": 0, "chaintoolong": 0}},
	}}
}

// healthy is a host on which every check of the mode passes.
func healthy(mode declared.Mode) Input {
	in := Input{
		Desired: declared.Desired{Mode: mode, Block: "x", Families: host.Families},
		Live: host.Live{
			Host:      host.Host{Name: "web-1", Kernel: "6.1.0-28-amd64", PageSize: 4096, PointerSize: 8},
			Conntrack: host.Conntrack{Kind: host.ConntrackModule, Loaded: mode != declared.Disabled, InitialNetns: true},
			Modules:   []host.Module{{Name: "x_tables"}},
			Boot:      &host.Boot{Init: host.InitSystemd, Services: []string{"netfilter-persistent"}},
			Sysctls:   map[string]host.Sysctl{},
		},
		Change: Change{ID: 7, Time: changed},
		Boot:   booted,
		Log:    silent(),
	}
	if mode == declared.Disabled {
		in.Live.ModprobeFiles = []host.ModprobeFile{{
			File:    host.File{Path: "/etc/modprobe.d/netfilter.conf", Exists: true},
			Entries: []host.ModprobeEntry{{Command: "install", Module: "nf_conntrack", Args: []host.ModprobeArg{{Text: "/bin/false"}}, Line: 1}},
		}}
		return in
	}
	in.Live.Modules = append(in.Live.Modules, host.Module{Name: "nf_conntrack", Refs: 1, By: []string{"xt_conntrack"}})
	in.Stats = stats(0, 0)
	if mode == declared.Tuned {
		in.Desired.Max, in.Desired.Hashsize = &declared.Setting{Value: 524288}, &declared.Setting{Value: 131072}
		in.Desired.Timeouts = []declared.Timeout{{Name: "tcp_established", Seconds: 86400}}
		in.Live.Conntrack.Max, in.Live.Conntrack.Hashsize, in.Live.Conntrack.Count = 524288, 131072, 70_000
		in.Live.Sysctls["net.netfilter.nf_conntrack_tcp_timeout_established"] = host.Sysctl{Value: "86400"}
		in.Change.OldMax = "65536"
		in.Live.ModulesLoad = []host.ModulesLoadFile{{File: host.File{Path: "/etc/modules-load.d/netfilter.conf", Exists: true}, Entries: []host.ModulesLoadEntry{{Module: "nf_conntrack", Line: 1}}}}
		in.Live.ModprobeFiles = []host.ModprobeFile{{File: host.File{Path: "/etc/modprobe.d/netfilter.conf", Exists: true}, Entries: []host.ModprobeEntry{{Command: "options", Module: "nf_conntrack", Args: []host.ModprobeArg{{Text: "hashsize=131072"}}, Line: 1}}}}
		in.Live.SysctlFiles = []host.SysctlFile{{File: host.File{Path: "/etc/sysctl.d/99-netfilter.conf", Exists: true}, Entries: []host.SysctlEntry{
			{Key: "net.netfilter.nf_conntrack_max", Value: "524288", Line: 1},
			{Key: "net.netfilter.nf_conntrack_tcp_timeout_established", Value: "86400", Line: 2},
		}}}
		return in
	}
	in.Desired.Notrack = []declared.Traffic{{Name: "dns", Protocol: "udp", LocalPorts: []host.PortRange{{From: 53, To: 53}}, Direction: declared.Both, Families: []host.Family{host.IPv4}}}
	in.Desired.Chains = iptables.Render(in.Desired, host.Live{})
	in.Live.Rulesets = []host.Ruleset{standing(in.Desired)}
	in.Live.SavedRules = []host.Ruleset{standing(in.Desired)}
	in.Live.SavedRules[0].File, in.Live.SavedRules[0].Primary = &host.File{Path: "/etc/iptables/rules.v4", Exists: true}, false
	in.Blocks = []BlockSeen{{Packets: 12}}
	return in
}

// standing is the ruleset in which what is declared stands.
func standing(d declared.Desired) host.Ruleset {
	raw := host.Table{Name: "raw"}
	for _, c := range d.Chains {
		raw.Rules = append(raw.Rules, host.Rule{Chain: c.Hook, Words: []string{"-j", c.Name}, Text: "-j " + c.Name})
		for _, r := range c.Rules {
			raw.Rules = append(raw.Rules, r.Rule)
		}
	}
	return host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true, Tables: []host.Table{raw}}
}

// TestHealthy has every check of every mode pass.
func TestHealthy(t *testing.T) {
	for _, mode := range []declared.Mode{declared.Disabled, declared.Notrack, declared.Tuned, declared.Unmanaged} {
		r := NewReport(healthy(mode))
		for _, c := range r.Checks {
			if c.Result != Pass {
				t.Errorf("%q: %s: %s: %s", mode, c.Name, c.Result, c.Text())
			}
		}
		if r.Summary.Pass != len(r.Checks) || r.Summary.Text != fmt.Sprintf("verify: %d checks pass", len(r.Checks)) {
			t.Errorf("%q: summary %+v of %d checks", mode, r.Summary, len(r.Checks))
		}
	}
}

// TestChecks breaks one thing after the other, and finds that check changed,
// with these words, and no other.
func TestChecks(t *testing.T) {
	ct := func(change func(*host.Conntrack)) func(*Input) {
		return func(in *Input) { change(&in.Live.Conntrack) }
	}
	noBlock := func(in *Input) { in.Live.ModprobeFiles = nil }
	for _, c := range []struct {
		mode   declared.Mode
		check  string
		result Result
		why    string
		also   string // checks that change with it
		change func(*Input)
	}{
		{declared.Disabled, "declared", Fail, "1 object differs: ctplan drift", "", func(in *Input) {
			in.Plan.Changes = []change.Change{&change.ModuleChange{M: change.Meta{Address: "module.nf_conntrack"}}}
		}},
		{declared.Disabled, "declared", Fail, "but 1 safety check holds apply back", "", func(in *Input) {
			in.Plan.Blocks = []change.Block{{Address: "iptables.ipv4.nat", Why: "nat rules"}}
		}},
		{declared.Disabled, "disabled.modules", Fail, "1 is loaded", "", func(in *Input) {
			in.Live.Modules = append(in.Live.Modules, host.Module{Name: "xt_state", Refs: 2, By: []string{"a"}})
		}},
		{declared.Disabled, "disabled.modules", Skip, "allow_risk", "", func(in *Input) {
			in.Live.Modules = append(in.Live.Modules, host.Module{Name: "nf_conntrack"})
			in.Desired.AllowRisk = []declared.Risk{declared.RiskModuleHeld}
		}},
		{declared.Disabled, "disabled.modules", Skip, "built into kernel", "disabled.autoload disabled.boot drop early_drop insert_failed chaintoolong", ct(func(c *host.Conntrack) { c.Kind, c.Loaded = host.ConntrackBuiltin, true })},
		{declared.Disabled, "disabled.modules", Pass, "has none", "", ct(func(c *host.Conntrack) { c.Kind = host.ConntrackAbsent })},
		{declared.Disabled, "disabled.hooks", Fail, "3 entries are in the table", "disabled.modules disabled.autoload disabled.boot drop early_drop insert_failed chaintoolong", ct(func(c *host.Conntrack) { c.Kind, c.Loaded, c.Count = host.ConntrackBuiltin, true, 3 })},
		{declared.Disabled, "disabled.hooks", Fail, "1 rule asks", "disabled.modules disabled.autoload disabled.boot drop early_drop insert_failed chaintoolong", func(in *Input) {
			in.Live.Conntrack.Kind, in.Live.Conntrack.Loaded = host.ConntrackBuiltin, true
			in.Askers = []census.Asker{{Where: "ipv4 filter INPUT", Rule: "-m state --state NEW"}}
		}},
		{declared.Disabled, "disabled.hooks", Skip, "before 4.14", "disabled.modules disabled.autoload disabled.boot drop early_drop insert_failed chaintoolong", func(in *Input) {
			in.Live.Conntrack.Kind, in.Live.Conntrack.Loaded, in.Live.Host.Kernel = host.ConntrackBuiltin, true, "3.10.0-1160.el7"
		}},
		{declared.Disabled, "disabled.hooks", Skip, "not all could be read", "disabled.modules disabled.autoload disabled.boot drop early_drop insert_failed chaintoolong", func(in *Input) {
			in.Live.Conntrack.Kind, in.Live.Conntrack.Loaded = host.ConntrackBuiltin, true
			in.Live.Notes = []string{"ip6tables is not installed: IPv6 rules were not read"}
		}},
		{declared.Disabled, "disabled.hooks", Skip, "not all could be read", "disabled.modules disabled.autoload disabled.boot drop early_drop insert_failed chaintoolong", func(in *Input) {
			in.Live.Conntrack.Kind, in.Live.Conntrack.Loaded = host.ConntrackBuiltin, true
			in.Live.Rulesets = []host.Ruleset{{Family: host.IPv4, Incompatible: []string{"nat"}}}
		}},
		{declared.Disabled, "disabled.autoload", Fail, "brings it back", "", noBlock},
		{declared.Disabled, "disabled.autoload", Skip, "built into kernel", "disabled.modules disabled.boot drop early_drop insert_failed chaintoolong", ct(func(c *host.Conntrack) { c.Kind, c.Loaded = host.ConntrackBuiltin, true })},
		{declared.Disabled, "disabled.autoload", Pass, "has none", "", ct(func(c *host.Conntrack) { c.Kind = host.ConntrackAbsent })},
		{declared.Disabled, "disabled.autoload", Fail, "brings it back", "", func(in *Input) {
			in.Live.ModprobeFiles[0].Entries[0] = host.ModprobeEntry{Command: "blacklist", Module: "nf_conntrack", Line: 1}
		}},
		{declared.Disabled, "disabled.boot", Fail, "/etc/modules-load.d/netfilter.conf:1", "disabled.autoload", func(in *Input) {
			noBlock(in)
			in.Live.ModulesLoad = healthy(declared.Tuned).Live.ModulesLoad
		}},
		{declared.Disabled, "disabled.boot", Skip, "not known", "disabled.autoload", func(in *Input) {
			noBlock(in)
			in.Live.Boot.Services = []string{"docker"}
		}},

		{declared.Notrack, "notrack.dns.rules", Fail, "1 of 2 rules is missing", "", func(in *Input) {
			raw := &in.Live.Rulesets[0].Tables[0]
			raw.Rules = slices.DeleteFunc(raw.Rules, func(r host.Rule) bool { return r.Chain == "CTPLAN-OUTPUT" })
		}},
		{declared.Notrack, "notrack.dns.rules", Fail, "1 of 2 rules is missing", "", func(in *Input) {
			raw := &in.Live.Rulesets[0].Tables[0]
			raw.Rules = slices.DeleteFunc(raw.Rules, func(r host.Rule) bool { return r.Chain == "OUTPUT" })
		}},
		{declared.Notrack, "notrack.dns.packets", Skip, "no traffic since", "notrack.dns.entries", func(in *Input) { in.Blocks[0].Packets = 0 }},
		{declared.Notrack, "notrack.dns.packets", Skip, "no traffic in 60 s, and 12 packets before", "", func(in *Input) {
			in.Watched, in.Before, in.Blocks[0].Before = time.Minute, stats(0, 0), 12
		}},
		{declared.Notrack, "notrack.dns.packets", Skip, "none of them stands", "notrack.dns.rules", func(in *Input) {
			in.Live.Rulesets = []host.Ruleset{{Family: host.IPv4, Backend: host.NFT, Primary: true}, {Family: host.IPv6, Backend: host.NFT, Primary: true}}
		}},
		{declared.Notrack, "notrack.dns.entries", Fail, "2 entries were made or used", "", func(in *Input) { in.Blocks[0].Entries = Entries{New: 2} }},
		{declared.Notrack, "notrack.dns.entries", Skip, "--wait 60s", "", func(in *Input) { in.Blocks[0].Entries = Entries{Unsure: 2} }},
		{declared.Notrack, "notrack.dns.entries", Pass, "ends in 5 days", "", func(in *Input) { in.Blocks[0].Entries = Entries{Old: 2, Longest: 432000} }},
		{declared.Notrack, "notrack.dns.entries", Skip, "which interface", "", func(in *Input) {
			in.Blocks[0].Entries, in.Desired.Notrack[0].Interface = Entries{New: 2}, "eth0"
		}},
		{declared.Notrack, "notrack.dns.entries", Skip, "no ctnetlink", "", func(in *Input) { in.Blocks[0].EntriesErr = "the kernel has no ctnetlink" }},
		{declared.Notrack, "boot.rules", Fail, "nothing restores", "", func(in *Input) { in.Live.Boot.Services = nil }},
		{declared.Notrack, "boot.rules", Skip, "not known", "", func(in *Input) { in.Live.Boot.Init = "" }},

		{declared.Tuned, "tuned.max", Fail, "it is 262,144 now", "", ct(func(c *host.Conntrack) { c.Max = 262144 })},
		{declared.Tuned, "tuned.buckets", Fail, "it is 512 now", "", ct(func(c *host.Conntrack) { c.Hashsize = 512 })},
		{declared.Tuned, "tuned.tcp_established", Fail, "= 432000", "", func(in *Input) {
			in.Live.Sysctls["net.netfilter.nf_conntrack_tcp_timeout_established"] = host.Sysctl{Value: "432000"}
		}},
		{declared.Tuned, "tuned.boot.max", Fail, "ends with 5", "", func(in *Input) { in.Live.SysctlFiles[0].Entries[0].Value = "5" }},
		{declared.Tuned, "tuned.boot.buckets", Fail, "ends with 1,024", "", func(in *Input) { in.Live.ModprobeFiles[0].Entries[0].Args[0].Text = "hashsize=1024" }},
		{declared.Tuned, "tuned.boot.tcp_established", Fail, "nothing that it reads", "", func(in *Input) { in.Live.SysctlFiles[0].Entries = in.Live.SysctlFiles[0].Entries[:1] }},
		{declared.Tuned, "tuned.boot.max", Skip, "initial network namespace", "tuned.boot.buckets tuned.boot.tcp_established", ct(func(c *host.Conntrack) { c.InitialNetns = false })},
		{declared.Tuned, "tuned.room", Skip, "not needed yet", "", ct(func(c *host.Conntrack) { c.Count = 70 })},
		{declared.Tuned, "tuned.room", Pass, "99,000 entries", "", func(in *Input) { in.Live.Conntrack.Count, in.Peak = 0, 99_000 }},
		{declared.Tuned, "tuned.room", Skip, "was not raised", "", func(in *Input) { in.Change.OldMax = "600000" }},
		{declared.Tuned, "tuned.room", Skip, "not known", "", func(in *Input) { in.Change.OldMax = "" }},

		{declared.Tuned, "table_full", Fail, "3 messages are there", "", func(in *Input) { in.Log.Messages, in.Log.First, in.Log.Last = 3, changed, changed }},
		{declared.Tuned, "table_full", Skip, "reach back to", "", func(in *Input) { in.Log.Reach = changed.Add(time.Hour) }},
		{declared.Tuned, "table_full", Skip, "no log that reaches until now", "", func(in *Input) { in.Log.Reach = time.Time{} }},
		{declared.Tuned, "table_full", Skip, "no log was read", "", func(in *Input) { in.Log = nil }},
		{declared.Tuned, "table_full", Pass, "other network namespaces", "", func(in *Input) { in.Log.Elsewhere = 3 }},

		{declared.Tuned, "drop", Skip, "5 since counting began, before the change or after", "", func(in *Input) { in.Stats = stats(5, 0) }},
		{declared.Tuned, "drop", Fail, "5 since counting began", "", func(in *Input) { in.Stats, in.Change.Time = stats(5, 0), time.Time{} }},
		{declared.Tuned, "drop", Fail, "5 since counting began", "table_full", func(in *Input) { in.Stats, in.Change.Time = stats(5, 0), booted.Add(-time.Hour) }},
		{declared.Tuned, "drop", Pass, "0 in 10 s, 5 since counting began", "", func(in *Input) { in.Stats, in.Before, in.Watched = stats(5, 0), stats(5, 0), 10*time.Second }},
		{declared.Tuned, "drop", Fail, "2 in 10 s, 5 since counting began", "", func(in *Input) { in.Stats, in.Before, in.Watched = stats(5, 0), stats(3, 0), 10*time.Second }},
		{declared.Tuned, "chaintoolong", Skip, "does not count", "", func(in *Input) {
			for _, cpu := range in.Stats.CPUs {
				delete(cpu.Counters, "chaintoolong")
			}
		}},
		{declared.Tuned, "drop", Skip, "no ctnetlink", "early_drop insert_failed chaintoolong", func(in *Input) { in.Stats, in.StatsErr = nil, "the kernel has no ctnetlink" }},
	} {
		in := healthy(c.mode)
		c.change(&in)
		checks := Checks(in)
		if got := of(t, checks, c.check); got.Result != c.result || !strings.Contains(got.Text(), c.why) {
			t.Errorf("%s %s: %s: %s\nwant %s with %q", c.mode, c.check, got.Result, got.Text(), c.result, c.why)
		}
		for _, got := range checks {
			if got.Result != Pass && got.Name != c.check && !slices.Contains(strings.Fields(c.also), got.Name) {
				t.Errorf("%s with %s broken: %s: %s: %s", c.mode, c.check, got.Name, got.Result, got.Text())
			}
		}
		if !slices.Equal(names(checks), names(Checks(healthy(c.mode)))) {
			t.Errorf("%s with %s broken has other checks: %v", c.mode, c.check, names(checks))
		}
	}
}

// TestNames are what metrics and alerts go by.
func TestNames(t *testing.T) {
	all := map[string]bool{}
	for _, mode := range []declared.Mode{declared.Disabled, declared.Notrack, declared.Tuned} {
		seen := map[string]bool{}
		for _, name := range names(Checks(healthy(mode))) {
			if seen[name] {
				t.Errorf("%s has two checks %q", mode, name)
			}
			seen[name], all[name] = true, true
		}
	}
	if got, want := slices.Sorted(maps.Keys(all)), strings.Fields(`boot.rules chaintoolong declared disabled.autoload disabled.boot disabled.hooks
		disabled.modules drop early_drop insert_failed notrack.dns.entries notrack.dns.packets notrack.dns.rules table_full tuned.boot.buckets tuned.boot.max
		tuned.boot.tcp_established tuned.buckets tuned.max tuned.room tuned.tcp_established`); !slices.Equal(got, want) {
		t.Errorf("%q\nwant\n%q", got, want)
	}
	page, err := os.ReadFile("../../docs/operation.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range all {
		for _, general := range [][2]string{{"notrack.dns.", "notrack.NAME."}, {"tuned.tcp_established", "tuned.TIMEOUT"}} {
			name = strings.Replace(name, general[0], general[1], 1)
		}
		if strings.HasPrefix(name, "tuned.boot.") {
			name = "tuned.boot.…"
		}
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/operation.md has no check %s", name)
		}
	}
}
