package vmtest

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
)

// TestBoot shows that each kernel comes up with conntrack as a module that
// nothing has loaded, and that what is written survives a reboot.
func TestBoot(t *testing.T) {
	t.Parallel()
	for _, k := range vmlab.Kernels() {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			vm := open(t).Boot(t, k)
			vm.Expect("uname -r", vm.Release())
			if !strings.HasPrefix(vm.Release(), string(k)+".") {
				t.Errorf("the kernel is %s, want %s", vm.Release(), k)
			}
			vm.Expect("lsmod | grep ^nf_conntrack || echo none", "none")
			vm.Expect("cat /run/vmlab/failed", "")
			vm.Run("modprobe nf_conntrack && lsmod | grep -q ^nf_conntrack")
			t.Logf("defaults: %s", vm.Run("sysctl -n net.netfilter.nf_conntrack_max; cat /sys/module/nf_conntrack/parameters/hashsize; grep MemTotal /proc/meminfo"))

			vm.Write("/etc/modules-load.d/late.conf", "# a comment\nnf_conntrack\n")
			vm.Write("/etc/sysctl.d/10-max.conf", "net.netfilter.nf_conntrack_max = 12345\n")
			vm.Run("iptables -A INPUT -s 192.0.2.1 -j DROP && iptables-save > /etc/iptables/rules.v4")
			vm.Reboot()
			vm.Expect("cat /run/vmlab/failed", "")
			vm.Expect("sysctl -n net.netfilter.nf_conntrack_max", "12345")
			vm.Expect("iptables -S INPUT | tail -n 1", "-A INPUT -s 192.0.2.1/32 -j DROP")
			vm.Run("ctplan version")
		})
	}
}
