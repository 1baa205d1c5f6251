package cause

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/trace"
)

var (
	applied = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	later   = applied.Add(time.Hour)
)

func past(extra ...journal.Transaction) []journal.Transaction {
	return append(extra, journal.Transaction{Header: journal.Header{ID: 1, BootID: "a"}, Outcome: journal.Committed, Ended: applied})
}

func facts(c change.Change, e trace.Evidence) Facts {
	return Facts{
		Changes: []change.Change{c}, Past: past(), Trace: e,
		Live: host.Live{Host: host.Host{BootID: "a", CPUs: 8, PageSize: 4096, PointerSize: 8}},
	}
}

func sysctlChange(key, value string) change.Change {
	return &change.SysctlChange{M: change.Meta{Address: "sysctl." + key}, Key: key, Before: value, After: "1"}
}

func rawChange() change.Change {
	return &change.RulesChange{
		M: change.Meta{Address: "iptables.ipv4.raw"}, Family: host.IPv4, Backend: host.NFT, Table: "raw",
		Before: []string{":PREROUTING ACCEPT", ":OUTPUT ACCEPT", ":CTPLAN-OUTPUT -", "-A OUTPUT -j CTPLAN-OUTPUT"},
		After:  []string{":PREROUTING ACCEPT", ":OUTPUT ACCEPT", ":CTPLAN-OUTPUT -", "-A OUTPUT -j CTPLAN-OUTPUT", "-A CTPLAN-OUTPUT -j CT --notrack"},
	}
}

func command(line string) trace.Evidence {
	return trace.Evidence{Commands: []trace.Command{{User: "alice", Via: "sudo", Line: line, Record: trace.Record{Where: "log:1", Time: later}}}}
}

// TestCommands is which command lines are taken for the hand that did it.
func TestCommands(t *testing.T) {
	timeout := sysctlChange("net.netfilter.nf_conntrack_tcp_timeout_established", "60")
	file := &change.FileChange{M: change.Meta{Address: "file./etc/sysctl.conf"}, Before: host.File{Path: "/etc/sysctl.conf", Exists: true}}
	for _, tt := range []struct {
		change change.Change
		line   string
		want   Certainty // "": it is not the cause
	}{
		{rawChange(), "/usr/sbin/iptables -t raw -F", Likely},
		{rawChange(), "/usr/sbin/iptables -t raw -F CTPLAN-OUTPUT", Likely},
		{rawChange(), "/usr/sbin/iptables -t raw -F PREROUTING", ""},
		{rawChange(), "/usr/sbin/iptables -F", ""},
		{rawChange(), "/usr/sbin/ip6tables -t raw -F", ""},
		{rawChange(), "/usr/sbin/iptables -t raw -L -n", ""},
		{rawChange(), "/usr/sbin/iptables-save", ""},
		{rawChange(), "/usr/sbin/iptables-legacy-restore /tmp/x", Likely},
		{rawChange(), "/usr/sbin/iptables-restore --test /tmp/x", ""},
		{rawChange(), "/usr/bin/sh -c 'cat /tmp/x | iptables-restore'", Likely},
		{rawChange(), "/bin/systemctl restart netfilter-persistent.service", Likely},
		{rawChange(), "/bin/systemctl status iptables", ""},
		{rawChange(), "/usr/sbin/service iptables restart", Likely},
		{rawChange(), "/bin/systemctl restart nginx", ""},
		{rawChange(), "/usr/sbin/nft flush ruleset", Likely},
		{rawChange(), "/usr/sbin/nft list ruleset", ""},
		{rawChange(), "/usr/sbin/ufw reload", Likely},
		{rawChange(), "/usr/sbin/ufw status", ""},
		{rawChange(), "/usr/bin/firewall-cmd --reload", Likely},
		{rawChange(), "/bin/bash", Possible},
		{rawChange(), "/bin/bash -c true", ""},
		{timeout, "/sbin/sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=60", Likely},
		{timeout, "/sbin/sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=61", Possible},
		{timeout, "/sbin/sysctl net.netfilter.nf_conntrack_tcp_timeout_established", ""},
		{timeout, "/usr/bin/cat /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", ""},
		{timeout, "/bin/sh -c 'echo 60 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established'", Likely},
		{timeout, "/sbin/sysctl --system", Possible},
		{timeout, "/usr/bin/apt-get update", ""},
		{file, "/usr/bin/vi /etc/sysctl.conf", Likely},
		{file, "/usr/bin/vi sysctl.conf", Likely}, // in /etc
		{file, "/usr/bin/cat /etc/sysctl.conf", ""},
		{file, "/usr/bin/tee -a /etc/sysctl.conf", Likely},
		{file, "/bin/sh -c 'echo x >>/etc/sysctl.conf'", Likely},
		{file, "/usr/sbin/sysctl -p /etc/sysctl.conf", ""},
		{file, "/usr/bin/vi /etc/sysctl.conf.bak", ""},
	} {
		e := command(tt.line)
		e.Commands[0].Dir = "/etc"
		got := Find(facts(tt.change, e))[tt.change.Meta().Address]
		want := Cause{Kind: Hand, Sure: tt.want}
		if tt.want == "" {
			want.Kind = Unknown
		}
		if len(got) != 1 || got[0].Kind != want.Kind || got[0].Sure != want.Sure {
			t.Errorf("%s for %s: %+v, want %s %s", tt.line, tt.change.Meta().Address, got, want.Sure, want.Kind)
		}
	}
}

// TestAgainAndAgain: a cron job that runs every minute is named once, with its
// last run.
func TestAgainAndAgain(t *testing.T) {
	var e trace.Evidence
	for i := range 10 {
		e.Commands = append(e.Commands, trace.Command{User: "root", Via: "cron", Line: "iptables-restore /etc/fw", Record: trace.Record{Where: "log", Time: later.Add(time.Duration(i) * time.Minute)}})
	}
	got := Find(facts(rawChange(), e))["iptables.ipv4.raw"]
	if len(got) != 1 || !got[0].Evidence[0].Time.Equal(later.Add(9*time.Minute)) {
		t.Errorf("%+v", got)
	}
}

// TestReboot: a boot takes away rules, and is not what made others, for sure.
func TestReboot(t *testing.T) {
	extra := rawChange().(*change.RulesChange)
	extra.Before, extra.After = extra.After, extra.Before
	for _, tt := range []struct {
		change change.Change
		boot   string
		want   Cause
	}{
		{rawChange(), "b", Cause{Kind: Reboot, Sure: Likely}},
		{extra, "b", Cause{Kind: Reboot, Sure: Possible}},
		{sysctlChange(keyMax, "5"), "b", Cause{Kind: Reboot, Sure: Likely}},
		{rawChange(), "a", Cause{Kind: Unknown}},
		{&change.FileChange{M: change.Meta{Address: "f"}}, "b", Cause{Kind: Unknown}},
	} {
		f := facts(tt.change, trace.Evidence{Booted: later})
		f.Live.Host.BootID = tt.boot
		got := Find(f)[tt.change.Meta().Address]
		if len(got) != 1 || got[0].Kind != tt.want.Kind || got[0].Sure != tt.want.Sure {
			t.Errorf("%s, boot %s: %+v, want %+v", tt.change.Meta().Address, tt.boot, got, tt.want)
		}
	}
}

// TestEditorsTime: a command after the last change of a file did not make it.
func TestEditorsTime(t *testing.T) {
	file := &change.FileChange{M: change.Meta{Address: "f"}, Before: host.File{Path: "/etc/sysctl.conf", Exists: true}}
	for after, want := range map[time.Duration]Kind{time.Minute: Hand, -time.Minute: Unknown} {
		e := command("/usr/bin/vi /etc/sysctl.conf")
		e.Files = map[string]trace.Stamp{"/etc/sysctl.conf": {Changed: later.Add(after)}}
		if got := Find(facts(file, e))["f"]; got[0].Kind != want {
			t.Errorf("changed %s after: %+v, want %s", after, got, want)
		}
	}
}

// TestWriters is what programs set by themselves, by the value that is seen.
func TestWriters(t *testing.T) {
	proxy := trace.Evidence{Processes: []trace.Process{{Name: "kube-proxy", Record: trace.Record{Where: "/proc/1", Time: applied.Add(-time.Hour)}}}}
	for value, want := range map[string]Kind{"262144": Writer, "262145": Unknown} { // 8 CPUs
		c := sysctlChange(keyMax, value)
		if got := Find(facts(c, proxy))[c.Meta().Address]; got[0].Kind != want {
			t.Errorf("max %s: %+v, want %s", value, got, want)
		}
	}
	hash := &change.HashsizeChange{M: change.Meta{Address: "h"}, Before: 65536, After: 1}
	if got := Find(facts(hash, proxy))["h"]; got[0].Kind != Writer {
		t.Errorf("hash size: %+v", got)
	}
	tuned := trace.Evidence{Settings: []trace.Setting{{Program: "TuneD", Key: "net.nf_conntrack_max", Value: "5"}}}
	for value, want := range map[string]Kind{"5": Writer, "6": Unknown} {
		c := sysctlChange(keyMax, value)
		if got := Find(facts(c, tuned))[c.Meta().Address]; got[0].Kind != want {
			t.Errorf("max %s: %+v, want %s", value, got, want)
		}
	}
}

// TestHashsizeLine: a line of modprobe.d counts as the kernel rounds it.
func TestHashsizeLine(t *testing.T) {
	f := facts(&change.HashsizeChange{M: change.Meta{Address: "h"}, Before: 100352, After: 1}, trace.Evidence{})
	f.Live.ModprobeFiles = []host.ModprobeFile{{
		File:    host.File{Path: "/etc/modprobe.d/x.conf"},
		Entries: []host.ModprobeEntry{{Command: "options", Module: "nf_conntrack", Args: []host.ModprobeArg{{Text: "hashsize=100000"}}, Line: 3}},
	}}
	if got := Find(f)["h"]; got[0].Kind != Setting || got[0].Evidence[0].Where != "/etc/modprobe.d/x.conf:3" {
		t.Errorf("%+v", got)
	}
}

// TestModule: what loaded a module that should not be there.
func TestModule(t *testing.T) {
	module := &change.ModuleChange{M: change.Meta{Address: "module.nf_conntrack"}, Module: "nf_conntrack"}
	rule := &change.RulesChange{M: change.Meta{Address: "iptables.ipv4.filter"}, Family: host.IPv4, Table: "filter", Before: []string{"-A INPUT -m state --state NEW -j ACCEPT"}}
	f := facts(module, trace.Evidence{})
	f.Changes = append(f.Changes, rule)
	if got := Find(f)["module.nf_conntrack"]; got[0].Kind != Dependency {
		t.Errorf("with a rule on state: %+v", got)
	}
	f = facts(module, trace.Evidence{Booted: later})
	f.Live.Host.BootID = "b"
	f.Live.ModulesLoad = []host.ModulesLoadFile{{File: host.File{Path: "/etc/modules-load.d/x.conf"}, Entries: []host.ModulesLoadEntry{{Module: "nf_conntrack", Line: 2}}}}
	got := Find(f)["module.nf_conntrack"]
	kinds := map[Kind]bool{}
	for _, c := range got {
		kinds[c.Kind] = true
	}
	if !kinds[Setting] || !kinds[Reboot] {
		t.Errorf("after a boot that loads it: %+v", got)
	}
	if got := Find(facts(module, command("/sbin/modprobe nf-conntrack")))["module.nf_conntrack"]; got[0].Kind != Hand {
		t.Errorf("modprobe: %+v", got)
	}
}

// TestOwn is what ctplan's own journals say, which goes before all else.
func TestOwn(t *testing.T) {
	const address = "sysctl.net.netfilter.nf_conntrack_max"
	step := func(before, after string) []journal.Step {
		return []journal.Step{{Step: change.Step{Addresses: []string{address}, Sysctl: &change.SysctlStep{Key: keyMax, Before: before, After: after}}}}
	}
	tx := func(id int, outcome journal.Outcome, back bool, steps []journal.Step) journal.Transaction {
		return journal.Transaction{Header: journal.Header{ID: id, Back: back, Time: applied, BootID: "a"}, Outcome: outcome, Ended: applied, Steps: steps}
	}
	for _, tt := range []struct {
		name string
		past []journal.Transaction // newest first
		want Kind
	}{
		{"none", nil, NeverApplied},
		{"taken back, none stayed", []journal.Transaction{tx(1, journal.WasUndone, false, step("5", "1"))}, RolledBack},
		{"taken back, and it changed after that", []journal.Transaction{tx(1, journal.WasUndone, false, step("4", "1"))}, NeverApplied},
		{"as applied", []journal.Transaction{tx(1, journal.Committed, false, step("4", "5"))}, Declaration},
		{"as applied before the last", []journal.Transaction{tx(2, journal.Committed, false, nil), tx(1, journal.Committed, false, step("4", "5"))}, Declaration},
		{"not as applied", []journal.Transaction{tx(1, journal.Committed, false, step("4", "1"))}, Unknown},
		{"rolled back by hand", []journal.Transaction{tx(2, journal.Committed, true, step("1", "5")), tx(1, journal.Committed, false, step("5", "1"))}, RolledBack},
		{"cut off", []journal.Transaction{tx(2, journal.Running, false, nil), tx(1, journal.Committed, false, nil)}, CutOff},
		{"taken back before another stayed", []journal.Transaction{tx(2, journal.Committed, false, nil), tx(1, journal.WasUndone, false, step("5", "1"))}, Unknown},
		{"unreadable", []journal.Transaction{{Outcome: journal.Unreadable}, tx(1, journal.Committed, false, step("4", "5"))}, Declaration},
	} {
		f := facts(sysctlChange(keyMax, "5"), trace.Evidence{})
		f.Past = tt.past
		if got := Find(f)[address]; len(got) != 1 || got[0].Kind != tt.want {
			t.Errorf("%s: %+v, want %s", tt.name, got, tt.want)
		}
	}
}

// TestAlwaysACause: whatever differs has a cause, or says that none is known,
// and no cause is without evidence unless it says that there is none.
func TestAlwaysACause(t *testing.T) {
	all := trace.Evidence{
		Booted:    later,
		Commands:  append(command("/usr/sbin/iptables -t raw -F").Commands, command("/bin/bash").Commands...),
		Processes: []trace.Process{{Name: "kube-proxy", Record: trace.Record{Where: "/proc/1", Time: later}}, {Name: "dockerd", Record: trace.Record{Where: "/proc/2", Time: later}}},
		Services: []trace.Service{
			{Name: "iptables", Did: "started", Record: trace.Record{Where: "a", Time: later}}, {Name: "ufw", Did: "ran", Record: trace.Record{Where: "b", Time: later}},
			{Name: "netfilter-persistent", Did: "started", Record: trace.Record{Where: "c", Time: later}}, {Name: "nftables", Did: "started", Record: trace.Record{Where: "d", Time: later}},
		},
	}
	changes := []change.Change{
		rawChange(), sysctlChange(keyMax, "5"), sysctlChange("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "3600"),
		&change.HashsizeChange{M: change.Meta{Address: "h"}}, &change.ModuleChange{M: change.Meta{Address: "m"}, Module: "nf_conntrack"},
		&change.FileChange{M: change.Meta{Address: "f"}}, &change.ServiceChange{M: change.Meta{Address: "s"}},
	}
	for _, e := range []trace.Evidence{{}, all} {
		f := facts(changes[0], e)
		f.Changes = changes
		f.Live.Host.BootID = "b"
		causes := Find(f)
		if !reflect.DeepEqual(causes, Find(f)) {
			t.Error("the same facts give other causes")
		}
		for _, c := range changes {
			got := causes[c.Meta().Address]
			if len(got) == 0 || len(got) > most {
				t.Errorf("%s: %d causes", c.Meta().Address, len(got))
			}
			for i, why := range got {
				if why.Kind != Unknown && len(why.Evidence) == 0 {
					t.Errorf("%s: no evidence of %+v", c.Meta().Address, why)
				}
				if i > 0 && got[i-1].Sure == Possible && why.Sure == Likely {
					t.Errorf("%s: a likely cause stands behind a possible one: %+v", c.Meta().Address, got)
				}
				if strings.HasSuffix(why.Text, ".") || why.Text == "" {
					t.Errorf("%s: text %q", c.Meta().Address, why.Text)
				}
			}
		}
	}
}
