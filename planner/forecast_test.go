package planner

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/host"
)

// outline prints a forecast one fact a line.
func outline(f boot.Forecast) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", f.Module.State, f.Module.Source)
	value := func(name string, v *boot.Value) {
		switch {
		case v == nil:
		case !v.Known:
			fmt.Fprintf(&b, "%s unknown: %s\n", name, v.Source)
		default:
			fmt.Fprintf(&b, "%s %d: %s\n", name, v.Value, v.Source)
		}
	}
	value("max", f.Max)
	value("hashsize", f.Hashsize)
	for i := range f.Sysctls {
		value(strings.TrimPrefix(f.Sysctls[i].Key, "net.netfilter.nf_conntrack_"), &f.Sysctls[i])
	}
	for _, r := range f.Rules {
		if r.State != boot.RulesNone {
			fmt.Fprintf(&b, "%s %s %d: %s\n", r.Family, r.State, r.Rules, r.Source)
		}
	}
	return b.String()
}

// bootHost is a host of 512 MiB with a kernel of today that nothing has told
// anything.
func bootHost(init string, services ...string) host.Live {
	return host.Live{
		Host:      host.Host{Name: "vm", Kernel: "6.1.0-18-amd64", Memory: 481048 << 10, PageSize: 4096, PointerSize: 8},
		Conntrack: host.Conntrack{Kind: host.ConntrackModule, InitialNetns: true},
		Boot:      &host.Boot{Init: init, Services: services},
	}
}

func loadFile(path string, modules ...string) host.ModulesLoadFile {
	f := host.ModulesLoadFile{File: host.File{Path: path, Exists: true}}
	for i, m := range modules {
		f.Entries = append(f.Entries, host.ModulesLoadEntry{Module: m, Line: i + 1})
	}
	return f
}

// withParams is an /etc/modules that loads nf_conntrack with parameters.
func withParams(params string) host.ModulesLoadFile {
	f := loadFile("/etc/modules", "nf_conntrack")
	f.As = "/etc/modules-load.d/modules.conf"
	f.Entries[0].Params = params
	return f
}

func excluding(path, key string) host.SysctlFile {
	f := sysctlFile(path, "")
	f.Excluded = []host.SysctlExclusion{{Key: key, Line: 1}}
	return f
}

func savedFile(t *testing.T, path, text string) host.Ruleset {
	r := parseLines(t, host.IPv4, text)
	if strings.HasSuffix(path, "6") || strings.HasSuffix(path, "ip6tables") {
		r.Family = host.IPv6
	}
	r.Backend, r.Primary, r.File = "", false, &host.File{Path: path, Exists: true, Content: text}
	return r
}

func linked(f host.SysctlFile) host.SysctlFile {
	f.As = "/etc/sysctl.d/99-sysctl.conf"
	return f
}

const (
	stateRules  = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -i lo -j ACCEPT\nCOMMIT\n*filter\n:INPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n"
	plainRules  = "*filter\n:INPUT DROP\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
	maxLine     = "net.netfilter.nf_conntrack_max = 100000\n"
	kernelMakes = "kernel 6.1.0-18-amd64 chooses it for 469 MiB of memory"
)

func TestForesee(t *testing.T) {
	const rulesV4 = "/etc/iptables/rules.v4"
	sysctlConf := linked(sysctlFile("/etc/sysctl.conf", maxLine))
	early := loadFile("/etc/modules-load.d/x.conf", "loop", "nf_conntrack")
	for _, c := range []struct {
		name string
		init string
		with func(*host.Live)
		want string
	}{
		{"nothing", host.InitSystemd, func(l *host.Live) {}, `
			unloaded: nothing that boot reads loads it`},
		{"early, no options", host.InitSystemd, func(l *host.Live) { l.ModulesLoad = []host.ModulesLoadFile{early} }, `
			loaded: /etc/modules-load.d/x.conf:2
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes},
		{"tuned", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack acct=1 hashsize=100000\n")}
			l.SysctlFiles = []host.SysctlFile{sysctlConf}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 100000: /etc/sysctl.conf:1
			hashsize 100352: /etc/modprobe.d/a.conf:1`},
		{"options alone", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{loadFile("/etc/modules-load.d/x.conf", "nf_conntrack_ftp")}
			l.ModprobeFiles = []host.ModprobeFile{
				modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack hashsize=1\n"),
				modprobeFile("/usr/lib/modprobe.d/b.conf", "options nf_conntrack \"hashsize=2048\"\n"),
				modprobeFile("/opt/c.conf", "options nf_conntrack hashsize=4096\n"),
			}
		}, `
			loaded: /etc/modules-load.d/x.conf:1
			max 16384: the kernel: 8 for each of the buckets of /usr/lib/modprobe.d/b.conf:1
			hashsize 2048: /usr/lib/modprobe.d/b.conf:1`},
		{"the command line wins", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack hashsize=1\n")}
			l.Boot.Cmdline = []string{"nf_conntrack.hashsize=1024"}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 8192: the kernel: 8 for each of the buckets of the kernel's command line
			hashsize 1024: the kernel's command line`},
		{"an option that is no number", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack hashsize=1k\n")}
		}, `
			unloaded: the kernel refuses to load nf_conntrack by /etc/modprobe.d/a.conf:1: hashsize=1k is no number that the kernel takes`},
		{"an option that is too large a number", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack hashsize=9223372036854775807\n")}
		}, `
			unloaded: the kernel refuses to load nf_conntrack by /etc/modprobe.d/a.conf:1: hashsize=9223372036854775807 is no number that the kernel takes`},
		{"parameters are part of a name to systemd", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{withParams("hashsize=1024")}
		}, `
			unloaded: nothing that boot reads loads it`},
		{"parameters win without systemd", host.InitSysv, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{withParams("acct=1 hashsize=1024")}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack hashsize=4096\n")}
		}, `
			loaded: /etc/modules:1
			max 8192: the kernel: 8 for each of the buckets of /etc/modules:1
			hashsize 1024: /etc/modules:1`},
		{"a blacklist", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "blacklist nf_conntrack\n")}
		}, `
			unloaded: /etc/modules-load.d/x.conf:2 names nf_conntrack, and /etc/modprobe.d/a.conf:1 blacklists it`},
		{"a blacklist that an alias goes around, and does not", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{loadFile("/etc/modules-load.d/x.conf", "ip_conntrack")}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "blacklist nf_conntrack\n")}
		}, `
			unloaded: /etc/modules-load.d/x.conf:1 names nf_conntrack, and /etc/modprobe.d/a.conf:1 blacklists it`},
		{"a blacklist means nothing without systemd", host.InitSysv, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "blacklist nf_conntrack\n")}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes},
		{"an alias", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{loadFile("/etc/modules-load.d/x.conf", "tracker")}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "alias track* nf_conntrack\noptions nf_conntrack hashsize=2048\n")}
		}, `
			loaded: /etc/modules-load.d/x.conf:1
			max 16384: the kernel: 8 for each of the buckets of /etc/modprobe.d/a.conf:2
			hashsize 2048: /etc/modprobe.d/a.conf:2`},
		{"a soft dependency", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{loadFile("/etc/modules-load.d/x.conf", "loop")}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.alias", "softdep loop pre: nf_conntrack\n")}
		}, `
			loaded: /etc/modules-load.d/x.conf:1
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes},
		{"a command that may load it", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{loadFile("/etc/modules-load.d/x.conf", "loop")}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install loop /sbin/modprobe nf_conntrack; true\n")}
		}, `
			unknown: /etc/modules-load.d/x.conf:1 names loop, and /etc/modprobe.d/a.conf:1 may load it`},
		{"a user", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{loadFile("/etc/modules-load.d/x.conf", "ip_vs_rr")}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install nf_conntrac[!x] /bin/true\n")}
		}, `
			unloaded: /etc/modprobe.d/a.conf:1 keeps nf_conntrack from loading`},
		{"a key that is taken back", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.d/1.conf", maxLine), excluding("/etc/sysctl.d/2.conf", "net.netfilter.nf_conntrack_max")}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes},
		{"a key that is set again", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{excluding("/etc/sysctl.d/1.conf", "net.netfilter.nf_conntrack_max"), sysctlFile("/etc/sysctl.d/2.conf", maxLine)}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 100000: /etc/sysctl.d/2.conf:1
			hashsize 4096: ` + kernelMakes},
		{"sysctl --system takes nothing back", host.InitSysv, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.d/1.conf", maxLine), excluding("/etc/sysctl.d/2.conf", "net.netfilter.nf_conntrack_max")}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 100000: /etc/sysctl.d/1.conf:1
			hashsize 4096: ` + kernelMakes},
		{"a glob excludes nothing, and [!x] is one", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.d/1.conf", "net.netfilter.nf_conntrack_[!b]ax = 7\n"), excluding("/etc/sysctl.d/2.conf", "net.netfilter.nf_conntrack_*")}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 7: /etc/sysctl.d/1.conf:1
			hashsize 4096: ` + kernelMakes},
		{"braces", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.d/1.conf", "net.netfilter.nf_conntrack_{max,{gre,xy}_t*[!m]} = 7\n")}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 7: /etc/sysctl.d/1.conf:1
			hashsize 4096: ` + kernelMakes + `
			gre_timeout 7: /etc/sysctl.d/1.conf:1`},
		{"built in", host.InitSystemd, func(l *host.Live) {
			l.Conntrack.Kind = host.ConntrackBuiltin
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack hashsize=1\n")}
			l.SysctlFiles = []host.SysctlFile{sysctlConf}
		}, `
			builtin: kernel 6.1.0-18-amd64 has it built in
			max 100000: /etc/sysctl.conf:1
			hashsize 4096: ` + kernelMakes},
		{"absent", host.InitSystemd, func(l *host.Live) {
			l.Conntrack.Kind = host.ConntrackAbsent
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, `
			absent: kernel 6.1.0-18-amd64 has no connection tracking
			ipv4 fail 1: /etc/iptables/rules.v4:8 needs nf_conntrack: kernel 6.1.0-18-amd64 has no connection tracking`},

		{"sysctl is lost without the module", host.InitSysv, func(l *host.Live) {
			l.SysctlFiles = []host.SysctlFile{sysctlConf}
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, `
			loaded: /etc/iptables/rules.v4:8 needs it
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes + `
			ipv4 restored 3: netfilter-persistent`},
		{"a race", host.InitSystemd, func(l *host.Live) {
			l.SysctlFiles = []host.SysctlFile{sysctlConf}
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, `
			loaded: /etc/iptables/rules.v4:8 needs it
			max unknown: /etc/sysctl.conf:1 is lost if systemd-sysctl comes before netfilter-persistent, which loads the module: nothing orders them
			hashsize 4096: ` + kernelMakes + `
			ipv4 restored 3: netfilter-persistent`},
		{"no link to sysctl.conf", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.conf", maxLine)}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes},
		{"no link without systemd", host.InitSysv, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.conf", maxLine)}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 100000: /etc/sysctl.conf:1
			hashsize 4096: ` + kernelMakes},
		{"a later file wins", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlConf, sysctlFile("/etc/sysctl.d/99-zz.conf", "net.nf_conntrack_max = 5000\n"), sysctlFile("/etc/sysctl.d/zz", "net.nf_conntrack_max = 6000\n")}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 5000: /etc/sysctl.d/99-zz.conf:1
			hashsize 4096: ` + kernelMakes},
		{"sysctl --system reads sysctl.conf last", host.InitSysv, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlConf, sysctlFile("/etc/sysctl.d/99-zz.conf", "net.nf_conntrack_max = 5000\n")}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 100000: /etc/sysctl.conf:1
			hashsize 4096: ` + kernelMakes},
		{"systemd keeps the place of a value that lasts", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.d/1.conf", maxLine), sysctlFile("/etc/sysctl.d/2.conf", "net.nf_conntrack_max = 5000\n"), sysctlFile("/etc/sysctl.d/3.conf", maxLine)}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 5000: /etc/sysctl.d/2.conf:1
			hashsize 4096: ` + kernelMakes},
		{"globs, buckets and timeouts", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			ex := sysctlFile("/etc/sysctl.d/2.conf", "net.netfilter.nf_conntrack_*timeout = 30\nnet.netfilter.nf_conntrack_buckets = 1000\n")
			ex.Excluded = []host.SysctlExclusion{{Key: "net.netfilter.nf_conntrack_udp_timeout", Line: 3}}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.d/1.conf", "net.netfilter.nf_conntrack_icmp_timeout = 7\n"), ex}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 4096: ` + kernelMakes + `
			hashsize 1024: /etc/sysctl.d/2.conf:2
			generic_timeout 30: /etc/sysctl.d/2.conf:1
			gre_timeout 30: /etc/sysctl.d/2.conf:1
			icmp_timeout 7: /etc/sysctl.d/1.conf:1
			icmpv6_timeout 30: /etc/sysctl.d/2.conf:1`},
		{"a value that is none", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.d/1.conf", "net.netfilter.nf_conntrack_max = 1e6\n")}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max unknown: /etc/sysctl.d/1.conf:1 sets net.netfilter.nf_conntrack_max, which the kernel may refuse
			hashsize 4096: ` + kernelMakes},
		{"newer defaults, carried back", host.InitSystemd, func(l *host.Live) {
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.Host.Kernel, l.Host.Memory = "5.14.0-427.el9.x86_64", 8<<30
			l.Conntrack.Loaded, l.Conntrack.Hashsize, l.Conntrack.Max = true, 262144, 262144
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 262144: kernel 5.14.0-427.el9.x86_64 has chosen it for 8192 MiB of memory
			hashsize 262144: kernel 5.14.0-427.el9.x86_64 has chosen it for 8192 MiB of memory`},

		{"blocked", host.InitSystemd, func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install nf_conntrack /bin/false\n")}
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules), savedFile(t, "/etc/iptables/rules.v6", plainRules)}
		}, `
			unloaded: /etc/modprobe.d/a.conf:1 keeps nf_conntrack from loading
			ipv4 fail 1: /etc/iptables/rules.v4:8 needs nf_conntrack: /etc/modprobe.d/a.conf:1 keeps nf_conntrack from loading
			ipv6 restored 1: netfilter-persistent`},
		{"blocked below", host.InitSystemd, func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install nf_defrag* /bin/true\n")}
			l.ModulesLoad = []host.ModulesLoadFile{early}
		}, `
			unloaded: /etc/modprobe.d/a.conf:1 keeps nf_defrag_ipv4 from loading`},
		{"an empty nat table needs it too", host.InitSystemd, func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install nf_conntrack /bin/false\n")}
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, plainRules+"*nat\n:PREROUTING ACCEPT\nCOMMIT\n")}
		}, `
			unloaded: /etc/modprobe.d/a.conf:1 keeps nf_conntrack from loading
			ipv4 fail 1: /etc/iptables/rules.v4:6 needs nf_conntrack: /etc/modprobe.d/a.conf:1 keeps nf_conntrack from loading`},
		{"a command of its own", host.InitSystemd, func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "\ninstall nf_conntrack /sbin/modprobe --ignore-install nf_conntrack; sysctl -p\n")}
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, `
			unknown: /etc/modprobe.d/a.conf:2 loads nf_conntrack by a command of its own
			ipv4 unknown 1: /etc/iptables/rules.v4:8 needs nf_conntrack: /etc/modprobe.d/a.conf:2 loads nf_conntrack by a command of its own`},
		{"false, or else", host.InitSystemd, func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install nf_conntrack /bin/false || /sbin/modprobe -i nf_conntrack\n")}
			l.ModulesLoad = []host.ModulesLoadFile{early}
		}, `
			unknown: /etc/modprobe.d/a.conf:1 loads nf_conntrack by a command of its own`},
		{"a command that only loads", host.InitSystemd, func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install nf_conntrack /sbin/modprobe --ignore-install nf_conntrack $CMDLINE_OPTS\n")}
			l.ModulesLoad = []host.ModulesLoadFile{early}
		}, `
			loaded: /etc/modules-load.d/x.conf:2
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes},
		{"a blacklist stops modules-load.d and no rule", host.InitSystemd, func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "blacklist nf_conntrack\n")}
			l.ModulesLoad = []host.ModulesLoadFile{early}
			l.SysctlFiles = []host.SysctlFile{sysctlConf}
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, `
			loaded: /etc/iptables/rules.v4:8 needs it
			max unknown: /etc/sysctl.conf:1 is lost if systemd-sysctl comes before netfilter-persistent, which loads the module: nothing orders them
			hashsize 4096: ` + kernelMakes + `
			ipv4 restored 3: netfilter-persistent`},
		{"blacklisted", host.InitSystemd, func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "blacklist nf_conntrack\n")}
			l.ModulesLoad = []host.ModulesLoadFile{early}
		}, `
			unloaded: /etc/modules-load.d/x.conf:2 names nf_conntrack, and /etc/modprobe.d/a.conf:1 blacklists it`},
		{"the command line loads and keeps from loading", host.InitSystemd, func(l *host.Live) {
			l.Boot.Cmdline = []string{"modules_load=loop,nf-conntrack", "module_blacklist=nf_conntrack"}
		}, `
			unloaded: the kernel's command line keeps nf_conntrack from loading`},

		{"not enabled", host.InitSystemd, func(l *host.Live) {
			l.Boot.Services = nil
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, `
			unloaded: nothing that boot reads loads it
			ipv4 idle 0: netfilter-persistent is not enabled, and ctplan knows of nothing else that restores this file`},
		{"an unknown boot", "", func(l *host.Live) {
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, `
			unloaded: nothing that boot reads loads it
			ipv4 unknown 0: ctplan does not know how this host boots`},
		{"a file of its own", host.InitSystemd, func(l *host.Live) {
			l.SavedRules = []host.Ruleset{savedFile(t, "/srv/rules", stateRules)}
		}, `
			unloaded: nothing that boot reads loads it
			ipv4 unknown 0: nothing was found that restores it`},
		{"docker", host.InitSystemd, func(l *host.Live) { l.Boot.Services = []string{"docker", "netfilter-persistent"} }, `
			unknown: docker is enabled and may load it`},
		{"docker, blocked", host.InitSystemd, func(l *host.Live) {
			l.Boot.Services = []string{"docker"}
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install nf_conntrack /bin/false\n")}
		}, `
			unloaded: /etc/modprobe.d/a.conf:1 keeps nf_conntrack from loading`},

		{"an init script sets sizes again", host.InitSysv, func(l *host.Live) {
			l.Boot.Services = []string{"iptables"}
			l.SysctlFiles = []host.SysctlFile{sysctlConf}
			l.SavedRules = []host.Ruleset{savedFile(t, "/etc/sysconfig/iptables", stateRules)}
			l.InitScripts = []host.InitScript{{File: host.File{Path: "/etc/init.d/iptables"}, SysctlFrom: []string{"/etc/sysctl.conf"}}}
			l.InitConfigs = []host.InitConfig{{File: host.File{Path: "/etc/sysconfig/iptables-config"}, SysctlLoad: &host.WordList{Words: []host.Word{{Text: ".nf_conntrack"}}}}}
		}, `
			loaded: /etc/sysconfig/iptables:8 needs it
			max 100000: /etc/sysctl.conf:1
			hashsize 4096: ` + kernelMakes + `
			ipv4 restored 3: iptables`},
		{"an init script that reads sysctl.d", host.InitSysv, func(l *host.Live) {
			l.Boot.Services = []string{"iptables"}
			l.SysctlFiles = []host.SysctlFile{sysctlFile("/etc/sysctl.conf", maxLine)}
			l.SavedRules = []host.Ruleset{savedFile(t, "/etc/sysconfig/iptables", stateRules)}
			l.InitScripts = []host.InitScript{{File: host.File{Path: "/etc/init.d/iptables"}, SysctlFrom: []string{"/etc/sysctl.d"}}}
			l.InitConfigs = []host.InitConfig{{File: host.File{Path: "/etc/sysconfig/iptables-config"}, SysctlLoad: &host.WordList{Words: []host.Word{{Text: ".nf_conntrack"}}}}}
		}, `
			loaded: /etc/sysconfig/iptables:8 needs it
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes + `
			ipv4 restored 3: iptables`},
		{"helpers of the init script", host.InitSystemd, func(l *host.Live) {
			l.Boot.Services = []string{"ip6tables"}
			l.SavedRules = []host.Ruleset{savedFile(t, "/etc/sysconfig/ip6tables", plainRules)}
			l.InitConfigs = []host.InitConfig{
				{File: host.File{Path: "/etc/sysconfig/iptables-config"}, Modules: &host.WordList{Line: 4, Words: []host.Word{{Text: "nf_nat"}}}},
				{File: host.File{Path: "/etc/sysconfig/ip6tables-config"}, Modules: &host.WordList{Line: 6, Words: []host.Word{{Text: "nf-conntrack-ftp"}}}},
			}
		}, `
			loaded: /etc/sysconfig/ip6tables-config:6
			max 4096: ` + kernelMakes + `
			hashsize 4096: ` + kernelMakes + `
			ipv6 restored 1: ip6tables`},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := bootHost(c.init, "netfilter-persistent")
			c.with(&l)
			want := strings.TrimPrefix(strings.ReplaceAll(c.want, "\n\t\t\t", "\n"), "\n") + "\n"
			if got := outline(boot.Foresee(l)); got != want {
				t.Errorf("forecast:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}
