package e2e

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// tcpStateless takes TCP out of tracking, and has what its rules ask of state
// translated. A rule on INVALID sees errors of ICMP about TCP then.
const tcpStateless = `
conntrack "stateless" {
  mode           = "notrack"
  stateful_rules = "translate"
  families       = ["ipv4"]
  allow_risk     = ["wider_rules"]

  notrack "tcp" { protocol = "tcp" }
}
`

// TestTranslate translates rules as ufw, Shorewall, firewalld, fail2ban and people
// write them, with connections open: these live through it there and back, new
// ones go as before, what was refused is refused, and every byte comes back.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("../../../planner/testdata/translate/*.rules")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d rulesets, %v", len(files), err)
	}
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, b, "stateless")
			here, near, far := network(t, h)
			h.sh("mkdir -p /etc/iptables; iptables -t raw -S") // legacy makes a table when it is named
			path := h.config(tcpStateless)
			refused := listen(t, here, nearHost[live.IPv4]+":3306")
			served := listen(t, here, nearHost[live.IPv4]+":22")
			called := listen(t, far, farAddr[live.IPv4]+":8443")
			for _, file := range files {
				rules, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				t.Run(strings.TrimSuffix(filepath.Base(file), ".rules"), func(t *testing.T) {
					outer := h.t
					h.t = t
					defer func() { h.t = outer }()
					h.RunInput(string(rules), "iptables-restore")
					h.sh("iptables-save > /etc/iptables/rules.v4")
					talks := append(open(t, near, here, "tcp", "", nearHost[live.IPv4], 8080, 3, "tcp/8080 in"), open(t, here, far, "tcp", "", farAddr[live.IPv4], 443, 3, "tcp/443 out")...)
					t.Cleanup(func() {
						for _, k := range talks {
							k.a.Close()
							k.b.Close()
						}
					})
					before := living(talks)
					hold := func(after string) {
						t.Helper()
						if now := living(talks); !maps.Equal(before, now) {
							t.Fatalf("%s: %v, and before %v\n%s", after, now, before, h.rules())
						}
						for _, c := range []struct {
							from *space
							to   net.Listener
						}{{near, served}, {here, called}} {
							x, y := connect(t, c.from, c.to, "")
							x.Close()
							y.Close()
						}
						if len(reached(t, []knocking{{near, refused}})) > 0 {
							t.Errorf("%s: what no rule lets in gets in\n%s", after, h.rules())
						}
					}
					hold("before")
					was := h.state()
					h.ctplan(exitOK, "apply", "--auto-approve", path)
					hold("translated")
					h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
					h.ctplan(exitOK, "drift", path)
					stands := h.state()
					h.ctplan(exitOK, "rollback", "--auto-approve")
					same(t, "there and back", was, h.state())
					hold("back")

					h.ctplan(exitOK, "apply", "--auto-approve", path)
					h.sh(`iptables-save | grep -m1 'ctplan .*nosyn: -m' | sed 's/^-A/iptables -D/' | sh`)
					if status, found := h.addresses(path); status != exitChanges || len(found) != 1 || found[0] != filter {
						t.Errorf("a twin is gone: drift exits %d and names %q", status, found)
					}
					h.ctplan(exitOK, "apply", "--auto-approve", path)
					same(t, "a twin was mended", stands, h.state())
					h.sh("iptables -t raw -F; iptables -t raw -X; nft delete table ip raw 2>/dev/null || true")
				})
			}
		})
	}
}
