package planner

import (
	"fmt"
	"strings"
	"testing"
)

// brief prints a plan's changes one a line, files by what they say afterwards.
func brief(p Plan) string {
	var b strings.Builder
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "%s %s", string(c.Meta().Action), c.Meta().Address)
		switch c := c.(type) {
		case *SysctlChange:
			fmt.Fprintf(&b, " %s -> %s", c.Before, c.After)
		case *HashsizeChange:
			fmt.Fprintf(&b, " %d -> %d", c.Before, c.After)
		case *FileChange:
			fmt.Fprintf(&b, " %q", c.After.Content)
		case *ServiceChange:
			var commands []string
			for _, words := range c.Step.Commands {
				commands = append(commands, strings.Join(words, " "))
			}
			b.WriteString(" " + strings.Join(commands, ", "))
		}
		b.WriteString("\n")
		if len(c.Meta().Reasons) == 0 || len(c.Meta().Sources) == 0 {
			fmt.Fprintf(&b, "  without reason or source\n")
		}
	}
	for _, bl := range p.Blocks {
		fmt.Fprintf(&b, "blocked %s %s: %s\n", bl.Risk, bl.Address, bl.Where)
	}
	return b.String()
}

func tuned(max, hashsize int64) Desired {
	return Desired{
		Block: "gw", Mode: Tuned, ModeSource: Pos{"gw.hcl", 2}, Source: Pos{"gw.hcl", 1}, Families: Families,
		Max: &Setting{max, Pos{"gw.hcl", 3}}, Hashsize: &Setting{hashsize, Pos{"gw.hcl", 4}}, StatefulRules: RefuseStateful,
	}
}

// sysctlFile parses the plain files of these tests: "key = value" lines.
func sysctlFile(path, content string) SysctlFile {
	f := SysctlFile{File: File{Path: path, Exists: true, Content: content, Mode: 0o644}}
	at := 0
	for i, l := range strings.SplitAfter(content, "\n") {
		if key, value, ok := strings.Cut(strings.TrimSuffix(l, "\n"), " = "); ok {
			f.Entries = append(f.Entries, SysctlEntry{
				Key: key, Value: value, Line: i + 1, Span: Span{at, at + len(l)},
				ValueSpan: Span{at + len(key) + 3, at + len(key) + 3 + len(value)},
			})
		}
		at += len(l)
	}
	return f
}

func modprobeFile(path, content string) ModprobeFile {
	f := ModprobeFile{File: File{Path: path, Exists: true, Content: content, Mode: 0o644}}
	at := 0
	for i, l := range strings.SplitAfter(content, "\n") {
		w := strings.Split(strings.TrimSuffix(l, "\n"), " ")
		if len(w) > 1 {
			e := ModprobeEntry{Command: w[0], Module: w[1], Line: i + 1, Span: Span{at, at + len(l)}, End: at + len(strings.TrimSuffix(l, "\n"))}
			pos := at + len(w[0]) + len(w[1]) + 2
			for _, a := range w[2:] {
				e.Args = append(e.Args, ModprobeArg{a, Span{pos, pos + len(a)}})
				pos += len(a) + 1
			}
			f.Entries = append(f.Entries, e)
		}
		at += len(l)
	}
	return f
}

func TestTuned(t *testing.T) {
	moduleLoad := ModulesLoadFile{File: File{Path: "/etc/modules-load.d/x.conf", Exists: true}, Entries: []ModulesLoadEntry{{Module: "nf_conntrack"}}}
	tests := []struct {
		name string
		d    Desired
		live func(*Live)
		want string
	}{
		{
			"a fresh host grows: hash before max, files, module at boot", tuned(524288, 131072), func(l *Live) {},
			`+ file./etc/modprobe.d/netfilter.conf "options nf_conntrack hashsize=131072\n"
~ sysfs.nf_conntrack.hashsize 512 -> 131072
~ sysctl.net.netfilter.nf_conntrack_max 1000 -> 524288
+ file./etc/sysctl.conf "net.netfilter.nf_conntrack_max = 524288\n"
+ file./etc/modules-load.d/netfilter.conf "nf_conntrack\n"
`,
		},
		{
			"shrinking: max before hash; in place, aliases in step, options merged", tuned(800, 100), func(l *Live) {
				l.Conntrack.Hashsize = 1024
				l.ModulesLoad = []ModulesLoadFile{moduleLoad}
				l.SysctlFiles = []SysctlFile{sysctlFile("/etc/sysctl.conf", "# max\nnet.nf_conntrack_max = 5\nnet.netfilter.nf_conntrack_max = 6\nvm.swappiness = 1\nnet.netfilter.nf_conntrack_max = 7\n")}
				l.ModprobeFiles = []ModprobeFile{
					modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack hashsize=9 acct=1\n"),
					modprobeFile("/etc/modprobe.d/netfilter.conf", "options nf_conntrack tstamp=1\n"),
				}
			},
			`~ file./etc/modprobe.d/a.conf "options nf_conntrack hashsize=100 acct=1\n"
~ sysctl.net.netfilter.nf_conntrack_max 1000 -> 800
~ sysfs.nf_conntrack.hashsize 1024 -> 512
~ file./etc/sysctl.conf "# max\nnet.nf_conntrack_max = 800\nnet.netfilter.nf_conntrack_max = 800\nvm.swappiness = 1\nnet.netfilter.nf_conntrack_max = 800\n"
`,
		},
		{
			"what the kernel rounds is not a difference", tuned(1000, 500), func(l *Live) {
				l.ModulesLoad = []ModulesLoadFile{moduleLoad}
				l.SysctlFiles = []SysctlFile{sysctlFile("/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 1000\n")}
				l.ModprobeFiles = []ModprobeFile{modprobeFile("/etc/modprobe.d/netfilter.conf", "options nf_conntrack hashsize=500\n")}
			}, "",
		},
		{
			"leaving disabled: the block goes first, then the module comes", tuned(1000, 500), func(l *Live) {
				l.Conntrack = Conntrack{Kind: ConntrackModule}
				l.Sysctls = nil
				l.ModulesLoad = []ModulesLoadFile{moduleLoad}
				l.SysctlFiles = []SysctlFile{sysctlFile("/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 1000\n")}
				l.ModprobeFiles = []ModprobeFile{modprobeFile("/etc/modprobe.d/netfilter.conf", "install nf_conntrack /bin/false\noptions nf_conntrack acct=1\n")}
			},
			`~ file./etc/modprobe.d/netfilter.conf "options nf_conntrack acct=1 hashsize=500\n"
+ module.nf_conntrack
~ sysctl.net.netfilter.nf_conntrack_max  -> 1000
`,
		},
		{
			"a namespace cannot size the machine's table", tuned(2000, 1000), func(l *Live) {
				l.Conntrack.InitialNetns = false
				l.Sysctls = map[string]Sysctl{keyMax: {Value: "1000"}}
				l.ModulesLoad = []ModulesLoadFile{moduleLoad}
				l.SysctlFiles = []SysctlFile{sysctlFile("/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 2000\n")}
				l.ModprobeFiles = []ModprobeFile{modprobeFile("/etc/modprobe.d/netfilter.conf", "options nf_conntrack hashsize=1000\n")}
			},
			`blocked read_only_sysctl sysfs.nf_conntrack.hashsize: /sys/module/nf_conntrack/parameters/hashsize = 512
blocked read_only_sysctl sysctl.net.netfilter.nf_conntrack_max: net.netfilter.nf_conntrack_max = 1000
`,
		},
		{
			"more than half of the memory", tuned(1000, 500), func(l *Live) {
				l.Host.Memory = 700_000
				l.ModulesLoad = []ModulesLoadFile{moduleLoad}
				l.SysctlFiles = []SysctlFile{sysctlFile("/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 1000\n")}
				l.ModprobeFiles = []ModprobeFile{modprobeFile("/etc/modprobe.d/netfilter.conf", "options nf_conntrack hashsize=500\n")}
			}, "blocked memory sysctl.net.netfilter.nf_conntrack_max: max = 1000\n",
		},
		{
			"a kernel without connection tracking has nothing to tune", tuned(1000, 500), func(l *Live) {
				l.Conntrack = Conntrack{Kind: ConntrackAbsent}
			}, "blocked no_conntrack module.nf_conntrack: kernel 6.1.0\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := testHost(Ruleset{Family: IPv4, Backend: NFT, Primary: true})
			tt.live(&l)
			if got := brief(Diff(tt.d, l)); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

func TestDisabledModulesAndFiles(t *testing.T) {
	d := Desired{Block: "b", Mode: Disabled, ModeSource: Pos{"b.hcl", 2}, Source: Pos{"b.hcl", 1}, Families: Families, StatefulRules: RemoveStateful}
	l := testHost(Ruleset{Family: IPv4, Backend: NFT, Primary: true})
	l.Conntrack = Conntrack{Kind: ConntrackModule, Loaded: true}
	l.Modules = []Module{
		{Name: "xt_state", Refs: 0}, {Name: "xt_conntrack"},
		{Name: "nf_nat", Refs: 1, By: []string{"xt_MASQUERADE"}}, {Name: "xt_MASQUERADE"},
		{Name: "nf_conntrack", Refs: 3, By: []string{"xt_conntrack", "nf_nat", "xt_MASQUERADE"}},
		{Name: "nf_defrag_ipv4", Refs: 1, By: []string{"nf_conntrack"}},
	}
	l.SysctlFiles = []SysctlFile{sysctlFile("/etc/sysctl.conf", "vm.swappiness = 1\nnet.netfilter.nf_conntrack_max = 1\n")}
	script := "#!/bin/bash\nNF_MODULES_COMMON=(x_tables nf_nat nf_conntrack) # Used by netfilter v4 and v6\n"
	word := func(s string) Word {
		i := strings.Index(script, s)
		return Word{s, Span{i, i + len(s)}}
	}
	inner := Span{strings.Index(script, "(") + 1, strings.Index(script, ")")}
	l.InitScripts = []InitScript{{
		File:  File{Path: "/etc/init.d/iptables", Exists: true, Content: script, Mode: 0o755},
		Array: &WordList{Words: []Word{word("x_tables"), word("nf_nat"), word("nf_conntrack")}, Inner: inner, Line: 2},
	}}
	want := `~ file./etc/sysctl.conf "vm.swappiness = 1\n"
~ initscript./etc/init.d/iptables "#!/bin/bash\nNF_MODULES_COMMON=(x_tables) # Used by netfilter v4 and v6\n"
+ file./etc/modprobe.d/netfilter.conf "install nf_conntrack /bin/false\n"
- module.xt_state
- module.xt_conntrack
- module.xt_MASQUERADE
- module.nf_nat
- module.nf_conntrack
`
	if got := brief(Diff(d, l)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}

	l.Modules[4].By = append(l.Modules[4].By, "openvswitch")
	l.Modules = append(l.Modules, Module{Name: "openvswitch", Refs: 2})
	p := Diff(d, l)
	if len(p.Blocks) != 1 || p.Blocks[0].Address != "module.openvswitch" {
		t.Errorf("a module outside netfilter does not block: %+v", p.Blocks)
	}
	d.AllowRisk = []Risk{RiskModuleHeld}
	if got := brief(Diff(d, l)); strings.Contains(got, "- module.nf_conntrack\n") || !strings.Contains(got, "- module.nf_nat\n") {
		t.Errorf("with the risk accepted, what is held must stay and the rest go:\n%s", got)
	}
}
