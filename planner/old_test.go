package planner

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// TestOldIptables: a release that cannot be served is refused where rules would
// be written through it, by its name and with what to install; nothing else is.
func TestOldIptables(t *testing.T) {
	for _, tt := range []struct {
		backend host.Backend
		version string
		install string // "": it is served
	}{
		{host.Legacy, "1.4.7", "1.4.21"}, {host.Legacy, "1.4.20", "1.4.21"}, {host.Legacy, "1.3.8", "1.4.21"},
		{host.Legacy, "1.4.21", ""}, {host.Legacy, "1.6.0+snapshot20161117", ""}, {host.Legacy, "1.10.0", ""}, {host.Legacy, "2.0", ""},
		{host.NFT, "1.6.1", "1.8.2"}, {host.NFT, "1.8.1", "1.8.2"}, {host.NFT, "1.8.2", ""}, {host.NFT, "1.8.11", ""},
		{host.Legacy, "", ""}, {host.NFT, "unknown", ""},
	} {
		r := parseLines(t, host.IPv4, filterHead+"COMMIT\n")
		r.Backend, r.Version = tt.backend, tt.version
		live := testHost(r)
		p := Diff(notrackTCP(declared.RefuseStateful), live)
		if p.Blocked() != (tt.install != "") {
			t.Errorf("%s %q: blocked is %v: %+v", tt.backend, tt.version, p.Blocked(), p.Blocks)
			continue
		}
		if p.Blocked() {
			if b := p.Blocks[0]; b.Risk != declared.RiskOldIptables || b.Override || b.Where != "iptables "+tt.version || !strings.Contains(b.Remedy, "install iptables "+tt.install) {
				t.Errorf("%s %q: %+v", tt.backend, tt.version, b)
			}
		}
		d := notrackTCP(declared.RefuseStateful)
		d.Chains = nil
		if p := Diff(d, live); p.Blocked() {
			t.Errorf("%s %q: no rule is to be written: %+v", tt.backend, tt.version, p.Blocks)
		}
	}
}
