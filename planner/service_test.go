package planner

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

const gateway = `*filter
:INPUT DROP
:FORWARD ACCEPT
:OUTPUT ACCEPT
-A INPUT -m state --state ESTABLISHED -j ACCEPT
-A INPUT -s 192.0.2.1/32 -j ACCEPT
COMMIT
`

// served is a gateway whose rules an init script has brought, with sizes that
// are not as tuned declares them.
func servedHost(t *testing.T) host.Live {
	t.Helper()
	live, saved := parseLines(t, host.IPv4, gateway), parseLines(t, host.IPv4, gateway)
	saved.Backend, saved.Primary = "", false
	saved.File = &host.File{Path: "/etc/sysconfig/iptables", Exists: true, Content: gateway, Mode: 0o600}
	return host.Live{
		Host:          host.Host{Name: "h", Kernel: "6.1.0", PageSize: 4096, PointerSize: 8, Memory: 8 << 30},
		Conntrack:     host.Conntrack{Kind: host.ConntrackModule, Loaded: true, InitialNetns: true, Hashsize: 512, Max: 1000},
		Modules:       []host.Module{{Name: "nf_conntrack"}},
		Sysctls:       map[string]host.Sysctl{etc.KeyMax: {Value: "1000", Writable: true}, "net.netfilter.nf_conntrack_udp_timeout": {Value: "30", Writable: true}},
		Rulesets:      []host.Ruleset{live},
		SavedRules:    []host.Ruleset{saved},
		SysctlFiles:   []host.SysctlFile{sysctlFile("/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 4096\nnet.netfilter.nf_conntrack_udp_timeout = 30\n")},
		ModprobeFiles: []host.ModprobeFile{modprobeFile("/etc/modprobe.d/netfilter.conf", "")},
		ModulesLoad:   []host.ModulesLoadFile{{File: host.File{Path: "/etc/modules-load.d/x.conf", Exists: true}, Entries: []host.ModulesLoadEntry{{Module: "nf_conntrack"}}}},
		InitScripts:   []host.InitScript{{File: host.File{Path: "/etc/init.d/iptables", Exists: true, Mode: 0o755}}},
	}
}

func restarted() declared.Desired {
	d := tuned(4096, 1024)
	d.Reload, d.ReloadSource = declared.ReloadRestart, declared.Pos{File: "gw.hcl", Line: 6}
	d.Timeouts = []declared.Timeout{{Name: "udp", Seconds: 30, Source: declared.Pos{File: "gw.hcl", Line: 5}}}
	return d
}

func TestRestart(t *testing.T) {
	tests := []struct {
		name     string
		with     func(*declared.Desired, *host.Live)
		want     string
		disrupts []string
	}{
		{"files, the service, then what a reload resets", func(*declared.Desired, *host.Live) {}, `
			~ file./etc/modprobe.d/netfilter.conf "options nf_conntrack hashsize=1024\n"
			! service.iptables /etc/init.d/iptables restart
			~ sysfs.nf_conntrack.hashsize 512 -> 1024
			~ sysctl.net.netfilter.nf_conntrack_max 1000 -> 4096
			~ sysctl.net.netfilter.nf_conntrack_udp_timeout 30 -> 30`, nil},
		{"nothing to size, nothing to restart", func(d *declared.Desired, l *host.Live) {
			l.Conntrack.Hashsize, l.Sysctls[etc.KeyMax] = 1024, host.Sysctl{Value: "4096", Writable: true}
		}, `
			~ file./etc/modprobe.d/netfilter.conf "options nf_conntrack hashsize=1024\n"`, nil},
		{"not loaded: loaded with what the files say", func(d *declared.Desired, l *host.Live) {
			l.Conntrack.Loaded, l.Conntrack.Hashsize, l.Sysctls, l.Modules = false, 0, nil, nil
		}, `
			~ file./etc/modprobe.d/netfilter.conf "options nf_conntrack hashsize=1024\n"
			+ module.nf_conntrack
			~ sysctl.net.netfilter.nf_conntrack_max  -> 4096
			~ sysctl.net.netfilter.nf_conntrack_udp_timeout  -> 30`, nil},
		{"a unit where systemd runs", func(d *declared.Desired, l *host.Live) {
			l.Boot = &host.Boot{Init: host.InitSystemd, Services: []string{"iptables"}}
			l.SysctlFiles[0].As = "/etc/sysctl.d/99-sysctl.conf"
		}, `
			~ file./etc/modprobe.d/netfilter.conf "options nf_conntrack hashsize=1024\n"
			! service.iptables systemctl restart iptables.service
			~ sysfs.nf_conntrack.hashsize 512 -> 1024
			~ sysctl.net.netfilter.nf_conntrack_max 1000 -> 4096
			~ sysctl.net.netfilter.nf_conntrack_udp_timeout 30 -> 30`, nil},
		{"IPv6 around it, and a script that flushes first", func(d *declared.Desired, l *host.Live) {
			l.InitScripts[0].FlushesFirst = true
			l.InitScripts = append(l.InitScripts, host.InitScript{File: host.File{Path: "/usr/libexec/iptables/ip6tables.init", Exists: true, Mode: 0o755}})
			live, saved := parseLines(t, host.IPv6, "*filter\n:INPUT DROP\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n"), parseLines(t, host.IPv6, "*filter\n:INPUT DROP\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n")
			saved.Primary, saved.File = false, &host.File{Path: "/etc/sysconfig/ip6tables", Exists: true}
			l.Rulesets, l.SavedRules = append(l.Rulesets, live), append(l.SavedRules, saved)
		}, `
			~ file./etc/modprobe.d/netfilter.conf "options nf_conntrack hashsize=1024\n"
			! service.iptables /usr/libexec/iptables/ip6tables.init stop, /etc/init.d/iptables restart, /usr/libexec/iptables/ip6tables.init start
			~ sysfs.nf_conntrack.hashsize 512 -> 1024
			~ sysctl.net.netfilter.nf_conntrack_max 1000 -> 4096
			~ sysctl.net.netfilter.nf_conntrack_udp_timeout 30 -> 30`,
			[]string{"/etc/init.d/iptables flushes before it sets policies to ACCEPT: INPUT drops everything", "ip6tables is stopped meanwhile"}},
		{"a kernel that cannot resize", func(d *declared.Desired, l *host.Live) {
			l.Conntrack.HashsizeFixed, d.Reload = true, declared.ReloadLive
		}, `
			blocked read_only_sysctl sysfs.nf_conntrack.hashsize: /sys/module/nf_conntrack/parameters/hashsize = 512`, nil},
		{"a kernel that cannot resize, restarted", func(d *declared.Desired, l *host.Live) { l.Conntrack.HashsizeFixed = true }, `
			~ file./etc/modprobe.d/netfilter.conf "options nf_conntrack hashsize=1024\n"
			! service.iptables /etc/init.d/iptables restart
			~ sysfs.nf_conntrack.hashsize 512 -> 1024
			~ sysctl.net.netfilter.nf_conntrack_max 1000 -> 4096
			~ sysctl.net.netfilter.nf_conntrack_udp_timeout 30 -> 30`, nil},

		{"no service", func(d *declared.Desired, l *host.Live) { l.InitScripts = nil }, `
			blocked no_service service.iptables: reload = "restart-service"`, nil},
		{"a script that nobody may run", func(d *declared.Desired, l *host.Live) { l.InitScripts[0].Mode = 0o644 }, `
			blocked no_service service.iptables: reload = "restart-service"`, nil},
		{"a unit that is not enabled", func(d *declared.Desired, l *host.Live) { l.Boot = &host.Boot{Init: host.InitSystemd} }, `
			blocked no_service service.iptables: reload = "restart-service"`, nil},
		{"rules that are not saved", func(d *declared.Desired, l *host.Live) {
			l.Rulesets[0] = parseLines(t, host.IPv4, strings.Replace(gateway, "-A INPUT -s", "-A INPUT -s 198.51.100.7/32 -j ACCEPT\n-A INPUT -s", 1)+"*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n")
		}, `
			blocked unsaved_rules iptables.ipv4.filter: -A INPUT -s 198.51.100.7/32 -j ACCEPT
			blocked unsaved_rules iptables.ipv4.nat: -A POSTROUTING -o eth0 -j MASQUERADE`, nil},
		{"rules that are saved alone, and a policy", func(d *declared.Desired, l *host.Live) {
			l.Rulesets[0] = parseLines(t, host.IPv4, strings.Replace(strings.Replace(gateway, ":INPUT DROP", ":INPUT ACCEPT", 1), "-A INPUT -s 192.0.2.1/32 -j ACCEPT\n", "", 1))
		}, `
			blocked unsaved_rules iptables.ipv4.filter: /etc/sysconfig/iptables: :INPUT DROP
			blocked unsaved_rules iptables.ipv4.filter: /etc/sysconfig/iptables: -A INPUT -s 192.0.2.1/32 -j ACCEPT`, nil},
		{"another order", func(d *declared.Desired, l *host.Live) {
			l.Rulesets[0] = parseLines(t, host.IPv4, strings.Replace(gateway, "-A INPUT -m state --state ESTABLISHED -j ACCEPT\n-A INPUT -s 192.0.2.1/32 -j ACCEPT\n", "-A INPUT -s 192.0.2.1/32 -j ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\n", 1))
		}, `
			blocked unsaved_rules iptables.ipv4.filter: -A INPUT …`, nil},
		{"nothing saved", func(d *declared.Desired, l *host.Live) { l.SavedRules = nil }, `
			blocked unsaved_rules iptables.ipv4.filter: :INPUT DROP
			blocked unsaved_rules iptables.ipv4.filter: -A INPUT -m state --state ESTABLISHED -j ACCEPT
			blocked unsaved_rules iptables.ipv4.filter: -A INPUT -s 192.0.2.1/32 -j ACCEPT`, nil},
		{"written otherwise, with ctplan's own in one", func(d *declared.Desired, l *host.Live) {
			l.SavedRules[0].Tables[0].Rules[0].Words = strings.Fields("-m conntrack --ctstate ESTABLISHED -j ACCEPT")
			l.SavedRules[0].Tables[0].Rules[1].Words = strings.Fields("-s 192.0.2.1 -j ACCEPT")
			l.Rulesets[0].Tables[0].Rules[0].Words = strings.Fields("-m conntrack --ctstate ESTABLISHED -j ACCEPT")
		}, `
			~ file./etc/modprobe.d/netfilter.conf "options nf_conntrack hashsize=1024\n"
			! service.iptables /etc/init.d/iptables restart
			~ sysfs.nf_conntrack.hashsize 512 -> 1024
			~ sysctl.net.netfilter.nf_conntrack_max 1000 -> 4096
			~ sysctl.net.netfilter.nf_conntrack_udp_timeout 30 -> 30`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, l := restarted(), servedHost(t)
			tt.with(&d, &l)
			p := Diff(d, l)
			got := brief(p)
			if p.Blocked() {
				i := strings.Index(got, "blocked")
				got = got[i:]
			}
			want := strings.TrimPrefix(strings.ReplaceAll(tt.want, "\n\t\t\t", "\n"), "\n") + "\n"
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			for _, c := range p.Changes {
				for _, s := range tt.disrupts {
					if c, ok := c.(*change.ServiceChange); ok && !strings.Contains(c.M.Disrupts, s) {
						t.Errorf("nothing about %q: %s", s, c.M.Disrupts)
					}
				}
			}
		})
	}
}

// Rules that are accepted to be lost are no reason to fail afterwards.
func TestRestartUnsaved(t *testing.T) {
	d, l := restarted(), servedHost(t)
	l.SavedRules = nil
	d.AllowRisk = []declared.Risk{declared.RiskUnsavedRules}
	p := Diff(d, l)
	if p.Blocked() || len(p.Warnings) < 3 {
		t.Fatalf("%+v", p)
	}
	i := slices.IndexFunc(p.Changes, func(c change.Change) bool { return c.Meta().Address == "service.iptables" })
	if c := p.Changes[i].(*change.ServiceChange); c.Step.KeepsRules {
		t.Error("the restart shall keep what it is known to lose")
	}
	if s := Steps(p)[i]; s.Service == nil || s.Inverse().Service == nil {
		t.Errorf("step %+v", s)
	}
}

// TestCheckReload: what a restart would not bring is said, with what wins. The
// list that has it brought is written where some script may read it.
func TestCheckReload(t *testing.T) {
	both := []string{etc.DefaultSysctlFile, etc.SysctlFolder}
	for _, tt := range []struct {
		name   string
		script host.InitScript
		linked bool // /etc/sysctl.d/99-sysctl.conf leads to sysctl.conf
		want   string
	}{
		{"reads it last", host.InitScript{Unloads: true, SysctlFrom: both}, true, ""},
		{"reads another file after it", host.InitScript{Unloads: true, SysctlFrom: both}, false, "/etc/sysctl.d/50-other.conf:1 sets net.netfilter.nf_conntrack_max = 7, which /etc/init.d/iptables reads after /etc/sysctl.conf"},
		{"reads it alone", host.InitScript{Unloads: true, SysctlFrom: both[:1]}, false, ""},
		{"reads another place", host.InitScript{Unloads: true, SysctlFrom: both[1:]}, false, "from /etc/sysctl.d alone, and not from this file"},
		{"reads it by the link", host.InitScript{Unloads: true, SysctlFrom: both[1:]}, true, ""},
		{"reads nothing", host.InitScript{Unloads: true}, true, "has no IPTABLES_SYSCTL_LOAD_LIST"},
		{"reads nothing and unloads nothing", host.InitScript{}, true, ""},
	} {
		l := servedHost(t)
		tt.script.File = l.InitScripts[0].File
		l.InitScripts = []host.InitScript{tt.script}
		if tt.linked {
			l.SysctlFiles[0].As = "/etc/sysctl.d/99-sysctl.conf"
		}
		l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.d/50-other.conf", "net.netfilter.nf_conntrack_max = 7\n"), l.SysctlFiles[0]}
		l.InitConfigs = []host.InitConfig{{File: host.File{Path: "/etc/sysconfig/iptables-config", Exists: true, Content: "# none\n"}, SysctlLoadName: "IPTABLES_SYSCTL_LOAD_LIST"}}
		plan := Diff(tuned(4096, 1024), l)
		lists := slices.ContainsFunc(plan.Changes, func(c change.Change) bool { return c.Meta().Address == "file./etc/sysconfig/iptables-config" })
		if want := tt.name != "reads nothing"; lists != want {
			t.Errorf("%s: the list is written: %v, want %v", tt.name, lists, want)
		}
		said := ""
		for _, w := range plan.Warnings {
			if strings.Contains(w.Text, "/etc/init.d/iptables") {
				said += w.Text
			}
		}
		if !strings.Contains(said, tt.want) || (said == "") != (tt.want == "") {
			t.Errorf("%s: said %q, want %q", tt.name, said, tt.want)
		}
	}
}

// TestKeepLoaded: where no rule loads the module again, the service does.
func TestKeepLoaded(t *testing.T) {
	l := servedHost(t)
	config := func(modules *host.WordList, content string) host.InitConfig {
		return host.InitConfig{
			File: host.File{Path: "/etc/sysconfig/iptables-config", Exists: true, Content: content}, Modules: modules, ModulesName: "IPTABLES_MODULES",
			SysctlLoad: &host.WordList{Words: []host.Word{{Text: ".nf_conntrack"}}},
		}
	}
	plain := strings.Replace(gateway, "-A INPUT -m state --state ESTABLISHED -j ACCEPT\n", "", 1)
	for _, tt := range []struct {
		rules   string
		modules *host.WordList
		content string
		want    string
	}{
		{gateway, nil, "", ""},
		{plain, nil, "# none\n", "# none\nIPTABLES_MODULES=\"nf_conntrack\"\n"},
		{plain, &host.WordList{Inner: host.Span{Start: 18, End: 18}}, "IPTABLES_MODULES=\"\"\n", "IPTABLES_MODULES=\"nf_conntrack\"\n"},
		{plain, &host.WordList{Words: []host.Word{{Text: "nf_nat_ftp", Span: host.Span{Start: 18, End: 28}}}, Inner: host.Span{Start: 18, End: 28}}, "IPTABLES_MODULES=\"nf_nat_ftp\"\n", ""},
	} {
		l.Rulesets, l.SavedRules = []host.Ruleset{parseLines(t, host.IPv4, tt.rules)}, nil
		l.InitConfigs = []host.InitConfig{config(tt.modules, tt.content)}
		got := ""
		for _, c := range Diff(tuned(4096, 1024), l).Changes {
			if c, ok := c.(*change.FileChange); ok && c.After.Path == "/etc/sysconfig/iptables-config" {
				got = c.After.Content
			}
		}
		if got != tt.want {
			t.Errorf("%q with rules\n%s\nbecomes %q, want %q", tt.content, tt.rules, got, tt.want)
		}
	}
}
