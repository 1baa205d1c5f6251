package e2e

import (
	"maps"
	"strings"
	"testing"
	"time"

	live "github.com/ctplan/ctplan/planner/host"
)

// server are stateful rules of a host that routes nothing.
const server = `*filter
:INPUT DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p udp -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A OUTPUT -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// TestReturnToTracking takes connections out of tracking and back, while other
// rules go on using it: by rollback, by a change that nobody confirms, and by
// another configuration. What was said meanwhile is out of the windows that
// tracking remembers; the connections go on all the same.
func TestReturnToTracking(t *testing.T) {
	const block = `
conntrack "x" {
  mode           = "notrack"
  families       = ["ipv4"]
  notrack "PROTO" { protocol = "PROTO" }
  accept "ssh" {
    protocol   = "tcp"
    local_port = 22
  }
  accept "calls" {
    protocol    = "tcp"
    remote_port = 443
    initiator   = "local"
  }
  accept "dns" {
    protocol   = "udp"
    local_port = 53
  }
  allow_risk = ["stateful_rules"]
}
`
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			h := newHost(t, b, "returning")
			here, near, far := network(t, h)
			h.RunInput(server, "iptables-restore")
			talks := append(open(t, near, here, "tcp", "", nearHost[live.IPv4], 22, 5, "tcp/22 in"), open(t, here, far, "tcp", "", farAddr[live.IPv4], 443, 5, "tcp/443 out")...)
			t.Cleanup(func() {
				for _, k := range talks {
					k.a.Close()
					k.b.Close()
				}
			})
			before := living(talks)
			hold := func(after string) {
				t.Helper()
				for range 3 {
					if now := living(talks); !maps.Equal(before, now) {
						t.Fatalf("after %s: %v, and before %v\n%s", after, now, before, h.sh("conntrack -L 2>&1 || true"))
					}
				}
			}
			tcp := h.config(strings.ReplaceAll(block, "PROTO", "tcp"))
			h.ctplan(exitOK, "apply", "--auto-approve", tcp)
			hold("leaving tracking")
			h.ctplan(exitOK, "rollback", "--auto-approve")
			hold("rollback")
			if b == live.NFT && strings.Contains(h.rules(), "*raw") {
				t.Errorf("a table is left that was not there:\n%s", h.rules())
			}

			h.ctplan(exitOK, "apply", "--auto-approve", "--confirm-within", "5s", tcp)
			hold("leaving tracking again")
			for deadline := time.Now().Add(20 * time.Second); strings.Contains(h.rules(), "CTPLAN"); time.Sleep(100 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nothing was taken back")
				}
			}
			hold("a change that nobody confirmed")

			h.ctplan(exitOK, "apply", "--auto-approve", "--lock-timeout", "30s", h.config(strings.ReplaceAll(block, "PROTO", "tcp")))
			hold("leaving tracking a third time")
			udp := h.config(strings.ReplaceAll(block, "PROTO", "udp"))
			if gone := willLose(t, h, udp); len(gone) > 0 {
				t.Errorf("the plan loses %v", gone)
			}
			h.ctplan(exitOK, "apply", "--auto-approve", udp)
			hold("another configuration")
		})
	}
}

// TestRollbackIsJudged: a way back may cut off what came since. It says so, and
// goes.
func TestRollbackIsJudged(t *testing.T) {
	t.Run("carried", func(t *testing.T) {
		h, talks := returning(t)
		r := h.ctplan(exitOK, "rollback", "--auto-approve")
		said(t, r.stdout, "impact of 2 open connections: 2 kept, carried over", "a service listens on tcp/8022 in")
		allLive(t, h, "rollback", talks)
	})
	t.Run("not carried", func(t *testing.T) {
		h, talks := returning(t)
		r := h.ctplan(exitOK, "rollback", "--auto-approve", "--no-carry")
		// Which way the first packet that is tracked goes, decides.
		said(t, r.stdout, "impact of 2 open connections: 2 unknown", "whether 2 connections survive cannot be told", "a service listens on tcp/8022 in")
		if now := living(talks); total(now) != 0 {
			t.Errorf("%v live: they do not show what carrying over is for", now)
		}
	})
}

// said fails the test unless a text has all of some, however it is broken into lines.
func said(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), w) {
			t.Errorf("not said: %q\n%s", w, text)
		}
	}
}

// returning is a host with connections that were opened while they were untracked,
// through rules that a rollback takes away.
func returning(t *testing.T) (h *host, talks []*talk) {
	t.Helper()
	h = newHost(t, live.NFT, "returning")
	here, near, _ := network(t, h)
	h.RunInput(server, "iptables-restore")
	h.ctplan(exitOK, "apply", "--auto-approve", h.config(`
conntrack "x" {
  mode       = "notrack"
  families   = ["ipv4"]
  allow_risk = ["stateful_rules"]
  notrack "admin" {
    protocol   = "tcp"
    local_port = 8022
  }
  accept "admin" {
    protocol   = "tcp"
    local_port = 8022
  }
}
`))
	talks = open(t, near, here, "tcp", "", nearHost[live.IPv4], 8022, 2, "tcp/8022 in")
	t.Cleanup(func() {
		for _, k := range talks {
			k.a.Close()
			k.b.Close()
		}
	})
	return h, talks
}
