package main

import (
	"fmt"
	"strings"
	"time"
)

// stateKinds are rules on connection state: what they say for the ith of them.
var stateKinds = []string{
	`-A INPUT -s %[1]s -p tcp -m tcp --dport %[2]d -m state --state NEW -m comment --comment "tenant %[2]d: api" -j ACCEPT`,
	`-A INPUT -s %[1]s -p tcp -m conntrack --ctstate NEW,ESTABLISHED -m multiport --dports 80,443,%[2]d -j ACCEPT`,
	`-A FORWARD -d %[1]s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
	`-A CUSTOMERS -s %[1]s -p tcp -m tcp --dport %[2]d -m state --state NEW -m limit --limit 25/sec -j ACCEPT`,
	`-A CUSTOMERS -s %[1]s -p tcp -m state --state INVALID -j DROP`,
}

// stateful is a filter table with n rules on connection state.
func stateful(n int) string {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:CUSTOMERS - [0:0]\n")
	for i := range n {
		fmt.Fprintf(&b, stateKinds[i%len(stateKinds)]+"\n", fmt.Sprintf("10.%d.%d.%d/32", i>>16, i>>8&0xff, i&0xff), 1024+i)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// planTranslate plans stateless twins for 5,000 rules on state: what it takes
// beyond the plan that lets them stand must be less than a second.
func planTranslate(s *space) error {
	const rules, limit = 5_000, time.Second
	if _, err := s.exec(stateful(rules), "iptables-restore"); err != nil {
		return err
	}
	config := func(policy string) (string, error) {
		return s.config(fmt.Sprintf(`
conntrack "all" {
  mode           = "notrack"
  stateful_rules = %q
  allow_risk     = ["stateful_rules", "wider_rules", "narrower_rules"]
  notrack "tcp" { protocol = "tcp" }
}
`, policy))
	}
	var took [2]time.Duration
	for i, policy := range []string{"translate", "refuse"} {
		path, err := config(policy)
		if err != nil {
			return err
		}
		c := compared{ctplan: func() error { return s.run(s.bin, "plan", path) }, reference: s.saves, runs: 7}
		if took[i], _, err = c.quartiles(); err != nil {
			return err
		}
	}
	own := took[0] - took[1]
	line("translate, 5,000 rules : left as they are", s.backend, millis(took[0]), millis(took[1]), millis(own), "<= 1 s", own <= limit)
	return s.extras("translate, 5,000 rules", "plan", s.dir+"/main.hcl")
}
