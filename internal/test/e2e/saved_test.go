package e2e

import (
	"regexp"
	"strings"
	"testing"
)

// Rules files as people write them: comments, counters, odd spacing, an order
// of tables that iptables-save would not choose.
const savedRules = `# Written by hand. Do not lose: "this" and 'that'
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -j TOS --set-tos 0x10/0x3f
COMMIT

# The firewall
*filter
:INPUT DROP [12:3456]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:blocked - [0:0]
[5:300] -A INPUT -i lo -j ACCEPT
-A INPUT  -s 198.51.100.0/24 -j blocked
-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 8080 -m state --state NEW -m comment --comment "web, \"new\" ones" -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A blocked -j DROP
COMMIT
# The end, without a newline`

// TestSavedRules has rules files get ctplan's chains and lose the rules on
// state, every other line as it was; loaded into a fresh kernel they are what
// the configuration declares.
func TestSavedRules(t *testing.T) {
	v6 := strings.NewReplacer("198.51.100.0/24", "2001:db8::/32", "-p icmp", "-p ipv6-icmp").Replace(savedRules)
	for _, files := range [][2]string{
		{"/etc/iptables/rules.v4", "/etc/iptables/rules.v6"},
		{"/etc/sysconfig/iptables", "/etc/sysconfig/ip6tables"},
	} {
		for _, backend := range backends {
			t.Run(strings.Trim(strings.ReplaceAll(files[0], "/", "-"), "-")+"/"+string(backend), func(t *testing.T) {
				h := newHost(t, backend, "web-1")
				h.write(files[0], savedRules)
				h.write(files[1], v6)
				path := h.config(webUntracked)
				h.sh("iptables-restore < " + files[0] + "; ip6tables-restore < " + files[1])

				h.ctplan(exitOK, "apply", "--auto-approve", path)
				for i, was := range []string{savedRules, v6} {
					is := h.read(files[i])
					if strings.Contains(is, "--state") {
						t.Errorf("%s still matches on state:\n%s", files[i], is)
					}
					for _, want := range []string{"-A CTPLAN-INPUT", "-A CTPLAN-OUTPUT", "-A CTPLAN-PREROUTING", "-j CT --notrack"} {
						if !strings.Contains(is, want) {
							t.Errorf("%s lacks %s:\n%s", files[i], want, is)
						}
					}
					same(t, files[i]+": lines that are no business of ctplan's", others(was), others(is))
				}

				fresh := newHost(t, backend, "web-1")
				fresh.write(files[0], h.read(files[0]))
				fresh.write(files[1], h.read(files[1]))
				fresh.sh("iptables-restore < " + files[0] + "; ip6tables-restore < " + files[1])
				fresh.ctplan(exitOK, "plan", "--detailed-exitcode", fresh.config(webUntracked))
			})
		}
	}
}

// rawTable is a raw table of ctplan's chains alone, as it is added to a file
// that has none.
var rawTable = regexp.MustCompile(`(?s)\n?\*raw\n.*?COMMIT\n`)

// others are the lines of a rules file that are neither ctplan's nor on state.
func others(text string) string {
	var kept []string
	for line := range strings.Lines(rawTable.ReplaceAllString(text, "")) {
		if !strings.Contains(line, "CTPLAN-") && !strings.Contains(line, "--state") {
			kept = append(kept, strings.TrimSuffix(line, "\n"))
		}
	}
	return strings.Join(kept, "\n")
}

// TestNoRulesFile has plan say that the rules will not survive a reboot.
func TestNoRulesFile(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	r := h.ctplan(exitOK, "plan", h.config(webUntracked))
	if !strings.Contains(r.stdout, "reboot") {
		t.Errorf("plan does not say that the rules will not survive a reboot:\n%s", r.stdout)
	}
}
