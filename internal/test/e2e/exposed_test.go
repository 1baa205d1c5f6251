package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	live "github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
)

// TestExposedByFiles has the rules in force and the saved ones say different
// things, and a stranger who knocks at every door: while a plan is carried out and
// taken back, behind it, and once a boot has restored the file. He gets in exactly
// where the plan says so.
func TestExposedByFiles(t *testing.T) {
	const (
		database = "-A INPUT ! -s 10.31.0.0/24 -p tcp -m tcp --dport 3306 -m state --state NEW -j DROP\n"
		admin    = "-A INPUT ! -s 10.31.0.0/24 -p tcp -m tcp --dport 5432 -m conntrack --ctstate NEW -j REJECT --reject-with tcp-reset\n"
		reject   = "-A FORWARD -i far -o near -p tcp -m state --state NEW -j DROP\n"
	)
	filter := func(rules ...string) string {
		return "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" + strings.Join(rules, "") + "COMMIT\n"
	}
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, b, "db-1")
			here, near, far := network(t, h)
			h.sh("mkdir -p /etc/iptables; iptables -t raw -S")
			var doors []knocking
			for _, at := range []struct {
				s    *space
				addr string
				port int
			}{{here, farHost[live.IPv4], 3306}, {here, farHost[live.IPv4], 5432}, {here, farHost[live.IPv4], 7005}, {near, nearAddr[live.IPv4], 22}} {
				doors = append(doors, knocking{far, listen(t, at.s, net.JoinHostPort(at.addr, fmt.Sprint(at.port)))})
			}
			// open are the doors that let the stranger in.
			open := func() (ports []string) {
				for _, k := range reached(t, doors) {
					_, port, _ := net.SplitHostPort(k.to.Addr().String())
					ports = append(ports, port)
				}
				slices.Sort(ports)
				return ports
			}
			const boot = "iptables-restore < /etc/iptables/rules.v4"
			for _, tt := range []struct {
				name, force, saved, stateful, risks string
				exposed                             string // what the plan says: FILE PORTS of each
				boots                               string // what it says a boot lets in by itself
				after, restored                     string
			}{
				{"what is in force is not saved", filter(database, admin, reject), filter(admin, reject), "translate", "", "", "tcp/3306 on this host, which today this keeps out: " + strings.TrimSpace(database), "7005", "3306 7005"},
				{"a router's is not", filter(database, reject), filter(database), "translate", "", "", "hosts behind this one, which today this keeps out: " + strings.TrimSpace(reject), "5432 7005", "22 5432 7005"},
				{"what is saved is not in force", filter(database), filter(database, admin), "remove", `"exposed"`, " tcp/3306; /etc/iptables/rules.v4 tcp/5432", "", "22 3306 5432 7005", "22 3306 5432 7005"},
			} {
				outer := h.t
				t.Run(tt.name, func(t *testing.T) {
					h.t = t
					defer func() { h.t = outer }()
					h.sh("iptables -t raw -F; iptables -t raw -X; nft delete table ip raw 2>/dev/null || true")
					h.RunInput(tt.force, "iptables-restore")
					h.write("/etc/iptables/rules.v4", tt.saved)
					before := open()
					path := h.config("conntrack \"x\" {\n mode = \"notrack\"\n families = [\"ipv4\"]\n stateful_rules = \"" + tt.stateful + "\"\n allow_risk = [" + tt.risks + "]\n notrack \"tcp\" { protocol = \"tcp\" }\n notrack \"through\" {\n protocol = \"tcp\"\n direction = \"forward\"\n }\n accept \"icmp\" { protocol = \"icmp\" }\n}\n")
					var plan struct {
						Impact   impact.Impact `json:"impact"`
						Warnings []struct {
							Text     string   `json:"text"`
							Commands []string `json:"commands"`
						} `json:"warnings"`
					}
					if err := json.Unmarshal([]byte(h.ctplan(exitOK, "plan", "--json", path).stdout), &plan); err != nil {
						t.Fatal(err)
					}
					var exposed, saves []string
					for _, e := range plan.Impact.Exposed {
						if !e.Declared {
							exposed = append(exposed, e.File+" "+strings.Join(e.Services, " "))
						}
					}
					slices.Sort(exposed)
					if got := strings.Join(exposed, "; "); got != tt.exposed {
						t.Errorf("exposed is %q, want %q", got, tt.exposed)
					}
					told := false
					for _, w := range plan.Warnings {
						if strings.HasPrefix(w.Text, "a boot restores /etc/iptables/rules.v4, which lets in") {
							if told, saves = true, w.Commands; !strings.Contains(w.Text, tt.boots) || strings.Count(w.Text, "keeps out") != 1 {
								t.Errorf("%s", w.Text)
							}
						}
					}
					if told != (tt.boots != "") {
						t.Errorf("a boot that lets somebody in is told: %v", told)
					}

					was := h.state()
					seen := knocks(t, doors)
					h.ctplan(exitOK, "apply", "--auto-approve", path)
					after := strings.Join(open(), " ")
					if tt.stateful == "translate" {
						h.ctplan(exitOK, "rollback", "--auto-approve")
						same(t, "there and back", was, h.state())
						h.ctplan(exitOK, "apply", "--auto-approve", path)
					}
					meanwhile := seen()
					if after != tt.after {
						t.Errorf("behind it %q get a stranger in, want %q\n%s", after, tt.after, h.rules())
					}
					for port, n := range meanwhile {
						if n > 0 && !slices.Contains(strings.Fields(after), port) && !slices.Contains(before, port) {
							t.Errorf("%d knocks at %s were let in while the rules changed", n, port)
						}
					}
					h.sh(boot)
					if got := strings.Join(open(), " "); got != tt.restored {
						t.Errorf("once the file is restored %q get a stranger in, want %q\n%s", got, tt.restored, h.rules())
					}
					if len(saves) == 0 {
						return
					}
					// What it says to do about it, then the same again.
					h.RunInput(tt.force, "iptables-restore")
					h.sh("iptables -t raw -F; " + saves[0])
					if r := h.ctplan(exitOK, "plan", path); strings.Contains(r.stdout, "a boot restores") {
						t.Errorf("what is in force is saved:\n%s", r.stdout)
					}
					h.ctplan(exitOK, "apply", "--auto-approve", path)
					h.sh(boot)
					if got := open(); !slices.Equal(got, before) {
						t.Errorf("saved and restored, %q get a stranger in, and before %q", got, before)
					}
				})
			}
		})
	}
}

// knocks tries to get through all doors, again and again until it is called off,
// and counts who got through, by port.
func knocks(t *testing.T, doors []knocking) (callOff func() map[string]int) {
	stop, through := make(chan struct{}), make(chan map[string]int)
	go func() {
		n := map[string]int{}
		for {
			select {
			case <-stop:
				through <- n
				return
			default:
			}
			for _, k := range reachedIn(t, doors, 50*time.Millisecond) {
				_, port, _ := net.SplitHostPort(k.to.Addr().String())
				n[port]++
			}
		}
	}()
	return func() map[string]int { close(stop); return <-through }
}
