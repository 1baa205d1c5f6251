package nft

import (
	"slices"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

// TestConfPaths follows includes, patterns and loops among them, and no further.
func TestConfPaths(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/etc/nftables.conf":     "flush ruleset\ninclude \"/etc/nftables.d/*.nft\"\ninclude \"own.nft\"\ninclude \"/missing\"\n# include \"/etc/no.nft\"\n",
		"/etc/nftables.d/a.nft":  "include \"/etc/nftables.conf\"\n",
		"/etc/nftables.d/b.nft":  "ct state new accept\n",
		"/etc/nftables.d/c.text": "ct state new accept\n",
		"/etc/own.nft":           "",
		"/etc/no.nft":            "",
		"/etc/nftables.d/.d.nft": "ct state new accept\n",
	})
	got, err := ConfPaths(root, Mains(root))
	if want := []string{"/etc/nftables.conf", "/etc/nftables.d/a.nft", "/etc/nftables.d/b.nft", "/etc/own.nft"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %q, want %q", err, got, want)
	}
}

// TestMains: what the unit loads, with what is dropped in.
func TestMains(t *testing.T) {
	const unit, dropIn = "/usr/lib/systemd/system/nftables.service", "/etc/systemd/system/nftables.service.d/"
	debian := "[Unit]\nExecStart=/no\n[Service]\nExecStart=/usr/sbin/nft -f /etc/nftables.conf\nExecReload=/usr/sbin/nft -f /etc/other\n"
	for name, tt := range map[string]struct {
		tree map[string]string
		want []string
	}{
		"Debian":  {map[string]string{unit: debian}, []string{"/etc/nftables.conf"}},
		"Red Hat": {map[string]string{unit: "[Service]\nExecStart=/sbin/nft -f /etc/sysconfig/nftables.conf\n"}, []string{"/etc/sysconfig/nftables.conf"}},
		"a unit of its own": {map[string]string{unit: debian, "/etc/systemd/system/nftables.service": "[Service]\nExecStart=-/usr/sbin/nft --file=/srv/a.nft \\\n -f '/srv/b.nft'\n"},
			[]string{"/srv/a.nft", "/srv/b.nft"}},
		"dropped in": {map[string]string{unit: debian, dropIn + "a.conf": "[Service]\nExecStart=\nExecStart=nft -f /etc/fw.nft\n"}, []string{"/etc/fw.nft"}},
		"one more":   {map[string]string{unit: debian, dropIn + "a.conf": "[Service]\nExecStart=nft -f /etc/fw.nft\n"}, []string{"/etc/nftables.conf", "/etc/fw.nft"}},
		"a script":   {map[string]string{unit: "[Service]\nExecStart=/usr/local/sbin/firewall start\n"}, []string{"/usr/local/sbin/firewall start"}},
		"words":      {map[string]string{unit: "[Service]\nExecStart=/usr/sbin/nft add table x\n"}, []string{"/usr/sbin/nft add table x"}},
		"no unit":    {map[string]string{"/etc/nftables.conf": ""}, []string{"/etc/nftables.conf"}},
		"nothing":    {map[string]string{"/etc/x": ""}, nil},
	} {
		if got := Mains(testhost.Tree(t, tt.tree)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
