package vmtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	"github.com/ctplan/ctplan/planner/boot"
	live "github.com/ctplan/ctplan/planner/host"
)

// Reboot shuts the machine down in order and holds the boot to its forecast.
// Where something else than files decides, as a change that is taken back,
// h.VM.Reboot has no expectations.
func (h *host) Reboot() {
	h.t.Helper()
	h.foreseen(h.VM.Reboot)
}

// PowerCut is the same with a power cut. In the midst of an apply there is
// nothing to foresee: h.VM.PowerCut.
func (h *host) PowerCut() {
	h.t.Helper()
	h.foreseen(h.VM.PowerCut)
}

// foreseen reads what plan says that the next boot comes to, boots, and
// compares. A machine without a declaration is only booted.
func (h *host) foreseen(boot func()) {
	h.t.Helper()
	f := h.forecast()
	boot()
	if f == nil {
		return
	}
	if got, want := h.booted(f.Now), expected(h, f.Now); got != want {
		h.Fail("booted into:\n%s\nthe forecast was:\n%s", got, want)
	}
}

// forecast is what plan says of the next boot, for the declaration in
// /root/host.hcl; nil without one.
func (h *host) forecast() *boot.Forecasts {
	h.t.Helper()
	out := h.Try("[ ! -e host.hcl ] || ctplan plan --json host.hcl")
	if out.Stdout == "" && out.Status == 0 {
		return nil
	}
	var plan struct {
		Forecast *boot.Forecasts `json:"forecast"`
	}
	if err := json.Unmarshal([]byte(out.Stdout), &plan); err != nil || plan.Forecast == nil {
		h.t.Fatalf("no forecast: %v\n%s%s", err, out.Stdout, out.Stderr)
	}
	return plan.Forecast
}

// expected is a forecast in the form of booted.
func expected(h *host, f boot.Forecast) string {
	h.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "module %s\n", f.Module.State)
	value := func(name string, v *boot.Value) {
		switch {
		case v == nil:
			fmt.Fprintf(&b, "%s none\n", name)
		case !v.Known:
			fmt.Fprintf(&b, "%s unknown: %s\n", name, v.Source)
		default:
			fmt.Fprintf(&b, "%s %d\n", name, v.Value)
		}
	}
	value("hashsize", f.Hashsize)
	value("max", f.Max)
	for _, s := range f.Sysctls {
		value(s.Key, &s)
	}
	for _, r := range f.Rules {
		switch r.State {
		case boot.RulesRestored:
			fmt.Fprintf(&b, "%s\n%s\n", r.Family, h.Run("grep ^-A "+r.File+" | "+canonical))
		case boot.RulesFail: // the tables before the one that fails
			fmt.Fprintf(&b, "%s\n%s\n", r.Family, h.Run(fmt.Sprintf("grep ^-A %s | head -n %d | %s", r.File, r.Rules, canonical)))
		case boot.RulesUnknown:
			fmt.Fprintf(&b, "%s unknown: %s\n", r.Family, r.Source)
		default:
			fmt.Fprintf(&b, "%s\n\n", r.Family)
		}
	}
	return b.String()
}

// canonical evens out what iptables-save may write otherwise than a file does.
const canonical = "sed 's/-j NOTRACK/-j CT --notrack/' | sort"

// booted is what the machine has come up with. Modules and sizes come first:
// looking at rules can load modules.
func (h *host) booted(f boot.Forecast) string {
	h.t.Helper()
	var b strings.Builder
	state := h.Run("if [ -e /sys/module/nf_conntrack/initstate ]; then echo loaded; elif modinfo nf_conntrack > /dev/null 2>&1; then echo unloaded; else echo absent; fi")
	fmt.Fprintf(&b, "module %s\n", state)
	read := func(name, file string) {
		fmt.Fprintf(&b, "%s %s\n", name, h.Run("cat "+file+" 2>/dev/null || echo none"))
	}
	read("hashsize", "/sys/module/nf_conntrack/parameters/hashsize")
	read("max", "/proc/sys/net/netfilter/nf_conntrack_max")
	for _, s := range f.Sysctls {
		read(s.Key, "/proc/sys/"+strings.ReplaceAll(s.Key, ".", "/"))
	}
	for _, r := range f.Rules {
		save := map[live.Family]string{live.IPv4: "iptables-save", live.IPv6: "ip6tables-save"}[r.Family]
		fmt.Fprintf(&b, "%s\n%s\n", r.Family, h.Run(save+" | grep ^-A | "+canonical))
	}
	return b.String()
}

// TestForecast boots hosts that others have configured, each in another way
// that makes a difference, and holds each boot to its forecast.
func TestForecast(t *testing.T) {
	t.Parallel()
	const install = "install nf_conntrack /bin/false\n"
	nat := strings.Replace(stateful, "*filter", "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n*filter", 1)
	raw := "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A PREROUTING -i lo -j ACCEPT\nCOMMIT\n"
	plain := "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
	type files map[string]string
	hosts := []struct {
		name  string
		files files
		want  string // of the module
	}{
		{"as it is", nil, "loaded"},
		{"lost sysctl", files{"/etc/sysctl.conf": "net.netfilter.nf_conntrack_max = 77777\n"}, "loaded"},
		{"late options", files{"/etc/modprobe.d/b.conf": "options nf_conntrack hashsize=2000\n", "/etc/modprobe.d/a.conf": "options nf-conntrack hashsize=5000\n"}, "loaded"},
		{"early", files{"/etc/modules-load.d/x.conf": "nf_conntrack\n", "/etc/sysctl.d/50.conf": "net/netfilter/nf_conntrack_max = 5000\nnet.netfilter.nf_conntrack_*timeout = 45\n-net.netfilter.nf_conntrack_udp*\nnet.netfilter.nf_conntrack_icmp_timeout = 7\n",
			"/etc/sysctl.d/60.conf": "net.nf_conntrack_max = 6000\n"}, "loaded"},
		{"sysctl.conf is last", files{"/etc/modules-load.d/x.conf": "nf_conntrack_ftp\n", "/etc/sysctl.d/zz.conf": "net.netfilter.nf_conntrack_max = 5000\nnet.netfilter.nf_conntrack_buckets = 3000\n",
			"/etc/sysctl.conf": "net.nf_conntrack_max = 6000\n"}, "loaded"},
		{"blacklist, state rules", files{"/etc/modules-load.d/x.conf": "nf_conntrack\n", "/etc/modprobe.d/a.conf": "blacklist nf_conntrack\n", "/etc/sysctl.conf": "net.nf_conntrack_max = 6000\n"}, "loaded"},
		{"blacklist, no rules", files{"/etc/modules-load.d/x.conf": "nf_conntrack\n", "/etc/modprobe.d/a.conf": "blacklist nf_conntrack\n", "/etc/iptables/rules.v4": plain, "/etc/iptables/rules.v6": plain}, "loaded"},
		{"parameters", files{"/etc/modules-load.d/x.conf": "nf_conntrack hashsize=3000 acct=1\n", "/etc/modprobe.d/a.conf": "options nf_conntrack hashsize=9000\n"}, "loaded"},
		{"another name, a soft dependency", files{"/etc/modules-load.d/x.conf": "dummy\n", "/etc/modprobe.d/a.alias": "alias dummy veth\nsoftdep veth pre: nf_conntrack\n", "/etc/iptables/rules.v4": plain, "/etc/iptables/rules.v6": plain}, "loaded"},
		{"blocked", files{"/etc/modprobe.d/a.conf": install, "/etc/iptables/rules.v4": raw + stateful, "/etc/iptables/rules.v6": plain}, "unloaded"},
		{"blocked, an empty nat table", files{"/etc/modprobe.d/a.conf": install, "/etc/iptables/rules.v4": plain + nat[:strings.Index(nat, "*filter")], "/etc/iptables/rules.v6": plain}, "unloaded"},
		{"an empty nat table", files{"/etc/iptables/rules.v4": nat[:strings.Index(nat, "*filter")], "/etc/iptables/rules.v6": plain}, "loaded"},
		{"blocked below", files{"/etc/modprobe.d/a.conf": "install nf_defrag_ipv4 /bin/true\n"}, "unloaded"},
		{"first install counts", files{"/etc/modprobe.d/a.conf": "install nf_conntrack /sbin/modprobe --ignore-install nf_conntrack $CMDLINE_OPTS\n", "/etc/modprobe.d/b.conf": install}, "loaded"},
	}
	// Each host boots on one kernel with one backend, those with a nat table on
	// all of them: there the backends differ.
	for n, cell := range []struct {
		kernel  vmlab.Kernel
		backend live.Backend
	}{{vmlab.Kernel510, live.Legacy}, {vmlab.Kernel61, live.NFT}, {vmlab.Kernel612, live.Legacy}, {vmlab.Kernel612, live.NFT}} {
		t.Run(fmt.Sprintf("%s/%s", cell.kernel, cell.backend), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, cell.kernel, cell.backend)
			h.Write("/root/host.hcl", `conntrack "any" { mode = "disabled" }`)
			h.Run("mkdir /var/was && cd /etc && cp -a modprobe.d modules-load.d sysctl.d iptables sysctl.conf /var/was/")
			for i, c := range hosts {
				if i%4 != n && !strings.Contains(c.name, "nat table") {
					continue
				}
				h.Run("cd /etc && rm -r modprobe.d modules-load.d sysctl.d iptables sysctl.conf && cp -a /var/was/* .")
				for _, name := range slices.Sorted(maps.Keys(c.files)) {
					h.Write(name, c.files[name])
				}
				t.Logf("%s", c.name)
				h.Reboot()
				if got := strings.Fields(h.booted(boot.Forecast{}))[1]; got != c.want {
					h.Fail("%s: the module is %s, want %s", c.name, got, c.want)
				}
			}
		})
	}
}
