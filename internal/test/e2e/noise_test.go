package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// noiseRounds is how many saved plans are applied and taken back.
func noiseRounds(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("CTPLAN_NOISE_ROUNDS"))
	if err != nil || n < 1 {
		return 12
	}
	t.Logf("%d rounds", n)
	return n
}

// TestSavedPlansUnderBans applies saved plans and takes them back while
// somebody bans and unbans addresses in a chain of his own twenty times a
// second, as fail2ban does on any host that faces the internet: none is
// refused, and no ban is lost or doubled.
func TestSavedPlansUnderBans(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, backend, "web-1")
			redHat(h)
			h.sh("ip link add up0 type veth peer name up1; ip addr add 198.18.0.1/24 dev up0; ip link set up0 up; ip link set up1 up")
			h.sh("iptables -N f2b-sshd; iptables -A f2b-sshd -j RETURN; iptables -I INPUT -p tcp --dport 22 -j f2b-sshd")
			path := h.config(webUntracked)
			// Every ban is looked at after it was made, and after it was lifted.
			writer := h.commandOf("sh", "-c", `
				n=0 wrong=0
				have() { iptables -w -S f2b-sshd | grep -c -- "-s $1/32"; }
				while [ ! -e /run/test/stop ]; do
					n=$((n + 1)) a=192.0.2.$((n % 250 + 1))
					iptables -w -I f2b-sshd 1 -s $a -j REJECT || echo "ban $n failed"
					[ "$(have $a)" = 1 ] || echo "ban $n stands $(have $a) times"
					sleep 0.02
					iptables -w -D f2b-sshd -s $a -j REJECT || echo "lifting $n failed"
					[ "$(have $a)" = 0 ] || echo "ban $n stands still"
				done
				echo "bans: $n"`)
			out := &strings.Builder{}
			writer.Stdout, writer.Stderr = out, out
			if err := writer.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { writer.Process.Kill() })
			rounds, changed := noiseRounds(t), 0
			for range rounds {
				h.ctplan(exitOK, "plan", "--out", "plan", path)
				time.Sleep(60 * time.Millisecond)
				r := h.ctplan(exitOK, "apply", "plan")
				if strings.Contains(r.stderr, "iptables.ipv4.filter changed since the plan was made") {
					changed++
				}
				h.ctplan(exitOK, "drift", path)
				h.ctplan(exitOK, "rollback", "--auto-approve")
			}
			h.sh("touch /run/test/stop")
			if err := writer.Wait(); err != nil {
				t.Errorf("the writer: %v", err)
			}
			bans := 0
			for line := range strings.Lines(out.String()) {
				if n, err := fmt.Sscanf(line, "bans: %d", &bans); n != 1 || err != nil {
					t.Errorf("the writer saw: %s", line)
				}
			}
			if changed == 0 || bans < rounds {
				t.Errorf("only %d bans, and the rules had changed under %d plans of %d: nothing was tried", bans, changed, rounds)
			}
			if got := h.sh("iptables -S f2b-sshd"); got != "-N f2b-sshd\n-A f2b-sshd -j RETURN\n" {
				t.Errorf("afterwards the writer's chain is\n%s", got)
			}
			t.Logf("%d plans applied and taken back, under %d of which the rules had changed; %d bans", rounds, changed, bans)
		})
	}
}
