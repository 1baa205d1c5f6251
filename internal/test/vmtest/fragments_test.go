package vmtest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
)

// parted are rules by whose types echoes pass, of which only the first part of a
// datagram has one. None is about lo, whose packets this test makes small.
const parted = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 129 -j ACCEPT
COMMIT
`

// TestFragments unloads connection tracking from a host whose rules go by what
// only the first part of a datagram has: datagrams in fragments live on over
// IPv6, after a boot too, and without the module.
func TestFragments(t *testing.T) {
	t.Parallel()
	for i, k := range vmlab.Kernels() {
		b := backends[i%len(backends)]
		t.Run(fmt.Sprintf("%s/%s", k, b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, k, b)
			h.Write("/etc/iptables/rules.v6", parted)
			h.Run("ip6tables-restore < /etc/iptables/rules.v6")
			h.Write("/root/host.hcl", "conntrack \"x\" {\n mode = \"disabled\"\n stateful_rules = \"remove\"\n accept \"ssh\" {\n protocol = \"tcp\"\n local_port = 22\n initiator = \"remote\"\n }\n}\n")
			h.apply()
			h.parts(true)
			h.unloaded()
			h.Expect("ip6tables-save | grep DEFRAG | sed 's/ \\[.*//'", ":CTPLAN-DEFRAG -\n-A CTPLAN-DEFRAG -m socket -j RETURN")
			h.VM.Reboot()
			h.settled()
			h.parts(true)
			h.unloaded()
			if !strings.HasPrefix(string(k), "5.") { // which go on joining once they have begun
				h.Run("ip6tables -F CTPLAN-DEFRAG")
				h.parts(false)
				h.apply()
				h.parts(true)
			}
		})
	}
}

// parts expects echoes of 100 bytes to come back, and of 4,000 in fragments to do
// so or not.
func (h *host) parts(live bool) {
	h.t.Helper()
	h.Expect("ip link set lo mtu 1280; for n in 100 4000; do ping6 -c 1 -W 2 -s $n ::1 > /dev/null && echo $n; done; true", map[bool]string{true: "100\n4000", false: "100"}[live])
}
