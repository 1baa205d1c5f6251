package boot_test

import (
	"reflect"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/boot"
)

func TestRead(t *testing.T) {
	const wants = "/etc/systemd/system/multi-user.target.wants/"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  host.Boot
	}{
		{"a container", map[string]string{"/proc/1/comm": "sleep\n", "/etc/rc2.d/S01netfilter-persistent": ""}, host.Boot{Services: []string{}}},
		{"systemd", map[string]string{
			"/proc/1/comm": "systemd\n", "/run/systemd/system/x": "",
			wants + "netfilter-persistent.service":                   "-> /lib/systemd/system/netfilter-persistent.service",
			wants + "cron.service":                                   "",
			"/etc/systemd/system/sockets.target.wants/docker.socket": "",
			"/usr/lib/systemd/system/iptables.service":               "", // not enabled
			wants + "ufw.service":                                    "",
			"/etc/systemd/system/ufw.service":                        "-> /dev/null",
		}, host.Boot{Init: "systemd", Services: []string{"docker", "netfilter-persistent"}}},
		{"runlevels of Debian", map[string]string{
			"/proc/1/comm": "init\n", "/etc/rc2.d/S10netfilter-persistent": "", "/etc/rc2.d/K01iptables": "", "/etc/rc6.d/S01ufw": "",
		}, host.Boot{Init: "sysv", Services: []string{"netfilter-persistent"}}},
		{"runlevels of Red Hat", map[string]string{
			"/proc/1/comm": "init\n", "/etc/rc.d/rc3.d/S08iptables": "", "/etc/rc.d/rc3.d/S08ip6tables": "",
		}, host.Boot{Init: "sysv", Services: []string{"ip6tables", "iptables"}}},
		{"running", map[string]string{
			"/sys/fs/cgroup/system.slice/docker.service/cgroup.procs": "", "/run/k3s.pid": "77\n", "/proc/77/stat": "",
			"/run/ufw.pid": "78\n", "/run/csf/csf.pid": "../..\n",
		}, host.Boot{Services: []string{}, Running: []string{"docker", "k3s"}}},
		{"command line", map[string]string{"/proc/cmdline": "quiet root=/dev/vda nf_conntrack.hashsize=4096 module_blacklist=nf_nat\n"},
			host.Boot{Services: []string{}, Cmdline: []string{"nf_conntrack.hashsize=4096", "module_blacklist=nf_nat"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := boot.Read(testhost.Tree(t, c.files)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v\nwant %+v", got, c.want)
			}
		})
	}
}
