package planner

import (
	"slices"
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// settledHost is a host that boots as tuned(1000, 512) declares.
func settledHost() host.Live {
	l := bootHost(host.InitSystemd, "netfilter-persistent")
	l.Rulesets = []host.Ruleset{{Family: host.IPv4, Backend: host.NFT, Primary: true}}
	l.ModulesLoad = []host.ModulesLoadFile{loadFile("/etc/modules-load.d/x.conf", "nf_conntrack")}
	l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "options nf_conntrack hashsize=512\n")}
	l.SysctlFiles = []host.SysctlFile{linked(sysctlFile("/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 1000\nnet.netfilter.nf_conntrack_udp_timeout = 30\n"))}
	return l
}

func TestForeseenWarnings(t *testing.T) {
	d := tuned(1000, 512)
	d.Timeouts = []declared.Timeout{{Name: "udp", Seconds: 30}}
	disabled := declared.Desired{Mode: declared.Disabled}
	notrack := declared.Desired{Mode: declared.Notrack, Chains: []declared.Chain{{Family: host.IPv4, Table: "raw", Hook: "OUTPUT", Name: "CTPLAN-OUTPUT"}}}
	const rulesV4 = "/etc/iptables/rules.v4"
	for _, c := range []struct {
		name string
		d    declared.Desired
		with func(*host.Live)
		want []string
	}{
		{"sound", d, func(*host.Live) {}, nil},
		{"later files", d, func(l *host.Live) {
			l.SysctlFiles = append(l.SysctlFiles, sysctlFile("/etc/sysctl.d/zz.conf", "net.nf_conntrack_max = 3\n"), sysctlFile("/usr/lib/sysctl.d/zzz.conf", "net.netfilter.nf_conntrack_udp_timeout = 4\n"))
		}, []string{
			"sysctl.net.netfilter.nf_conntrack_max: a boot ends with net.netfilter.nf_conntrack_max 3, not 1000: /etc/sysctl.d/zz.conf:1 wins: take that line away",
			"sysctl.net.netfilter.nf_conntrack_udp_timeout: a boot ends with net.netfilter.nf_conntrack_udp_timeout 4, not 30: /usr/lib/sysctl.d/zzz.conf:1 wins: a file of the same name in /etc masks it",
		}},
		{"a named file that boot does not read", func() declared.Desired {
			d := d
			d.Timeouts = nil
			d.Files.Sysctl = "/etc/sysctl.conf"
			return d
		}(), func(l *host.Live) { l.SysctlFiles[0].As = "" }, []string{
			`sysctl.net.netfilter.nf_conntrack_max: a boot does not set net.netfilter.nf_conntrack_max: it does not read /etc/sysctl.conf. Declare files { sysctl = "/etc/sysctl.d/99-netfilter.conf" }`,
		}},
		{"options elsewhere", d, func(l *host.Live) {
			l.ModprobeFiles = append(l.ModprobeFiles, modprobeFile("/usr/lib/modprobe.d/z.conf", "options nf_conntrack hashsize=1024\n"))
		}, []string{"sysfs.nf_conntrack.hashsize: a boot ends with a hash size 1024, not 512: /usr/lib/modprobe.d/z.conf:1 wins: a file of the same name in /etc masks it"}},
		{"not loaded", d, func(l *host.Live) { l.ModulesLoad = nil }, []string{"module.nf_conntrack: a boot does not load nf_conntrack, and the sizes are lost: nothing that boot reads loads it"}},
		{"loaded by a command", d, func(l *host.Live) {
			l.ModprobeFiles = append(l.ModprobeFiles, modprobeFile("/etc/modprobe.d/z.conf", "install nf_conntrack false || x\n"))
		}, []string{"module.nf_conntrack: whether a boot loads nf_conntrack is not known: /etc/modprobe.d/z.conf:1 loads nf_conntrack by a command of its own"}},
		{"another namespace", d, func(l *host.Live) { l.ModulesLoad, l.Conntrack.InitialNetns = nil, false }, nil},
		{"rules fail", d, func(l *host.Live) {
			l.ModulesLoad = nil
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/z.conf", "install nf_conntrack false\n")}
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, []string{
			"module.nf_conntrack: a boot does not load nf_conntrack, and the sizes are lost: /etc/modprobe.d/z.conf:1 keeps nf_conntrack from loading",
			"file./etc/iptables/rules.v4: a boot fails to restore this file, and only 1 rule stands of it: /etc/iptables/rules.v4:8 needs nf_conntrack: /etc/modprobe.d/z.conf:1 keeps nf_conntrack from loading",
		}},
		{"disabled, loaded", disabled, func(*host.Live) {}, []string{"module.nf_conntrack: a boot loads nf_conntrack: /etc/modules-load.d/x.conf:1"}},
		{"disabled", disabled, func(l *host.Live) { l.ModulesLoad = nil }, nil},
		{"disabled, docker", disabled, func(l *host.Live) { l.ModulesLoad, l.Boot.Services = nil, []string{"docker"} },
			[]string{"module.nf_conntrack: whether a boot loads nf_conntrack is not known: docker is enabled and may load it"}},
		{"notrack", notrack, func(l *host.Live) { l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)} }, nil},
		{"notrack, one of two files", notrack, func(l *host.Live) {
			l.SavedRules = []host.Ruleset{savedFile(t, "/etc/sysconfig/iptables", stateRules), savedFile(t, rulesV4, stateRules)}
		}, nil},
		{"notrack, not restored", notrack, func(l *host.Live) {
			l.Boot.Services = nil
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, []string{"file./etc/iptables/rules.v4: a boot does not restore this file: netfilter-persistent is not enabled, and ctplan knows of nothing else that restores this file"}},
		{"notrack, elsewhere", notrack, func(l *host.Live) { l.SavedRules = []host.Ruleset{savedFile(t, "/srv/rules", stateRules)} },
			[]string{"file./srv/rules: whether a boot restores this file is not known: nothing was found that restores it"}},
		{"notrack, a container", notrack, func(l *host.Live) {
			l.Boot = &host.Boot{}
			l.SavedRules = []host.Ruleset{savedFile(t, rulesV4, stateRules)}
		}, nil},
		{"unmanaged", declared.Desired{}, func(*host.Live) {}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := settledHost()
			c.with(&l)
			var got []string
			for _, w := range (Plan{}).Foreseen(c.d, l, l).Warnings {
				got = append(got, w.Address+": "+w.Text)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("warnings:\n%q\nwant:\n%q", got, c.want)
			}
		})
	}
}
