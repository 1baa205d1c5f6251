package servers_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/servers"
)

func TestRead(t *testing.T) {
	at := netip.MustParseAddr
	dns := func(addr, file string) host.Server {
		return host.Server{Service: host.ServiceDNS, Addr: at(addr), Port: 53, File: file}
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []host.Server
	}{
		{"nothing", nil, nil},
		{"by hand", map[string]string{
			"/etc/resolv.conf":            "# made by hand\nsearch example.net\nnameserver 10.0.0.53\nnameserver  2001:db8::53 # the other\nnameserver not.an.address\n;nameserver 192.0.2.9\nnameserver fe80::1%eth0\noptions edns0\n",
			"/etc/ntp.conf":               "driftfile /var/lib/ntp/drift\nserver 10.0.0.123 iburst\npool 0.debian.pool.ntp.org iburst\nserver 127.127.1.0\nrestrict 10.0.0.0\n",
			"/etc/network/interfaces":     "auto eth0\niface eth0 inet dhcp\niface eth0 inet6 static\n\taddress 2001:db8::2\n",
			"/etc/network/interfaces.d/6": "iface eth1 inet6 dhcp\n",
		}, []host.Server{
			dns("10.0.0.53", "/etc/resolv.conf"), dns("2001:db8::53", "/etc/resolv.conf"), dns("fe80::1", "/etc/resolv.conf"),
			{Service: host.ServiceNTP, Addr: at("10.0.0.123"), Port: 123, File: "/etc/ntp.conf"}, {Service: host.ServiceNTP, Port: 123, File: "/etc/ntp.conf"},
			{Service: host.ServiceDHCP, Port: 67, LocalPort: 68, File: "/etc/network/interfaces"}, {Service: host.ServiceDHCPv6, Port: 547, LocalPort: 546, File: "/etc/network/interfaces.d/6"},
		}},
		{"systemd", map[string]string{
			"/etc/resolv.conf":                    "nameserver 127.0.0.53\n",
			"/run/systemd/resolve/resolv.conf":    "nameserver 10.0.0.54\n",
			"/etc/systemd/timesyncd.conf":         "[Time]\n#NTP=192.0.2.1\nNTP=10.0.0.124 time.example.net\n",
			"/etc/systemd/network/10-wan.network": "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n",
		}, []host.Server{
			dns("10.0.0.54", "/run/systemd/resolve/resolv.conf"),
			{Service: host.ServiceNTP, Addr: at("10.0.0.124"), Port: 123, File: "/etc/systemd/timesyncd.conf"}, {Service: host.ServiceNTP, Port: 123, File: "/etc/systemd/timesyncd.conf"},
			{Service: host.ServiceDHCP, Port: 67, LocalPort: 68, File: "/etc/systemd/network/10-wan.network"},
		}},
		{"Red Hat", map[string]string{
			"/etc/resolv.conf":                          "nameserver 127.0.0.1\n", // asks nobody that is known
			"/etc/chrony.conf":                          "pool 2.rhel.pool.ntp.org iburst\nserver 10.0.0.125\n",
			"/etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\nBOOTPROTO=\"dhcp\"\n",
			"/etc/sysconfig/network-scripts/ifup":       "BOOTPROTO=dhcp\n",
		}, []host.Server{
			{Service: host.ServiceNTP, Port: 123, File: "/etc/chrony.conf"}, {Service: host.ServiceNTP, Addr: at("10.0.0.125"), Port: 123, File: "/etc/chrony.conf"},
			{Service: host.ServiceDHCP, Port: 67, LocalPort: 68, File: "/etc/sysconfig/network-scripts/ifcfg-eth0"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := servers.Read(testhost.Tree(t, tt.files)); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v\nwant %v", got, tt.want)
			}
		})
	}
}

// FuzzRead feeds files of anybody: nothing may fail, and what is named is bounded.
func FuzzRead(f *testing.F) {
	f.Add("nameserver 10.0.0.53\n", "server 10.0.0.1\n", "iface a inet dhcp")
	f.Add("nameserver 127.0.0.1\nnameserver", "NTP=a b c\npool", "= =\n;x y\nDHCP=")
	f.Fuzz(func(t *testing.T, resolv, ntp, interfaces string) {
		got := servers.Read(testhost.Tree(t, map[string]string{"/etc/resolv.conf": resolv, "/etc/ntp.conf": ntp, "/etc/systemd/timesyncd.conf": ntp, "/etc/network/interfaces": interfaces}))
		if len(got) > 64 {
			t.Errorf("%d servers", len(got))
		}
		for _, s := range got {
			if s.Addr.IsLoopback() || s.Addr.Zone() != "" {
				t.Errorf("%v", s)
			}
		}
	})
}

func ExampleRead() {
	for _, s := range servers.Read("/nonexistent") {
		fmt.Println(s)
	}
	// Output:
}
