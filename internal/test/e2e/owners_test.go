package e2e

import (
	"cmp"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// untracked takes traffic of every way out of tracking, on a host that routes.
const untracked = `locals {
  here = ["10.31.0.1", "10.32.0.1", "fd31::1", "fd32::1"]
}

conntrack "x" {
  mode       = "notrack"
  firewall   = "iptables"
  allow_risk = ["connection_marks"]

  notrack "web" {
    protocol   = "tcp"
    local      = local.here
    local_port = 8080
  }
  notrack "https" {
    protocol    = "tcp"
    local       = local.here
    remote_port = 443
  }
  notrack "dns" {
    protocol   = "udp"
    local      = local.here
    local_port = 53
  }
  notrack "ntp" {
    protocol    = "udp"
    local       = local.here
    remote_port = 123
  }
  notrack "ping" {
    protocol = "icmp"
    local    = local.here
  }
  notrack "syslog" {
    protocol    = "udp"
    remote_port = 514
    direction   = "forward"
  }

  accept "web" {
    protocol   = "tcp"
    local      = local.here
    local_port = 8080
  }
  accept "https" {
    protocol    = "tcp"
    local       = local.here
    remote_port = 443
    initiator   = "local"
  }
  accept "dns" {
    protocol   = "udp"
    local      = local.here
    local_port = 53
  }
  accept "ntp" {
    protocol    = "udp"
    local       = local.here
    remote_port = 123
  }
  accept "ping" {
    protocol = "icmp"
    local    = local.here
  }
  accept "syslog" {
    protocol    = "udp"
    remote_port = 514
    direction   = "forward"
  }
}
`

// helped takes what a helper reads out of tracking.
const helped = `conntrack "x" {
  mode     = "notrack"
  firewall = "iptables"

  notrack "ftp" {
    protocol   = "tcp"
    local      = ["10.31.0.1", "10.32.0.1", "fd31::1", "fd32::1"]
    local_port = 21
  }
}
`

// zones are of firewalld: a public zone that lets in what a crowd needs, and a
// policy for what is routed.
const zones = `
mkdir -p /etc/firewalld/zones /etc/firewalld/policies
cat > /etc/firewalld/zones/public.xml <<'END'
<?xml version="1.0" encoding="utf-8"?>
<zone>
  <service name="ftp"/>
  <port port="22" protocol="tcp"/>
  <port port="8080" protocol="tcp"/>
  <port port="53" protocol="udp"/>
  <protocol value="gre"/>
</zone>
END
cat > /etc/firewalld/policies/routed.xml <<'END'
<?xml version="1.0" encoding="utf-8"?>
<policy target="CONTINUE">
  <port port="80" protocol="tcp"/>
  <port port="514" protocol="udp"/>
  <protocol value="icmp"/>
  <ingress-zone name="ANY"/>
  <egress-zone name="ANY"/>
</policy>
END`

// TestRemediesOfOwners does what a blocked plan says, with whoever keeps the rules
// that would drop something: then it is blocked no longer, and carried out it
// costs no connection.
func TestRemediesOfOwners(t *testing.T) {
	for name, tt := range map[string]struct {
		config  string
		furnish func(h *host)
		where   *regexp.Regexp // what each block names
		mend    func(h *host, doc document)
	}{
		"nft": {
			config: untracked,
			furnish: func(h *host) {
				loads(h, natives["maps"])
				h.sh("nft insert rule inet fw input ct state untracked udp sport 123 drop")
			},
			where: regexp.MustCompile(`^(policy drop of inet fw \w+|inet fw \w+ handle \d+: .*) \(nftables.service, /etc/nftables\.d/10-host\.nft:\d+\)$|^inet fw input handle \d+: .*sport 123 drop \(added by hand, in no file that nftables.service loads\)$`),
			mend:  runs,
		},
		"helper": {
			config:  helped,
			furnish: func(h *host) { loads(h, natives["states"]) },
			where:   regexp.MustCompile(`^(connections that are open|a service that listens) on tcp/21 in$|^ct helper inet filter ftp$|^inet filter input handle \d+: .*|^policy drop of inet filter input`),
			mend:    runs,
		},
		"file": {
			config:  untracked,
			furnish: func(h *host) { loads(h, natives["states"]) },
			where:   regexp.MustCompile(`^(policy drop of inet filter \w+|inet filter \w+ handle \d+: .*) \(nftables.service, /etc/nftables\.d/10-host\.nft:\d+\)$`),
			mend: func(h *host, doc document) {
				h.adds(doc)
				h.sh("nft -f /etc/nftables.conf")
			},
		},
		"firewalld": {
			config:  strings.Replace(untracked, `["connection_marks"]`, `["exposed"]`, 1),
			furnish: func(h *host) { h.firewalld(zones) },
			where:   regexp.MustCompile(`^inet firewalld filter_\w+ handle \d+: reject .* \(made by firewalld\)$`),
			mend:    runs,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, live.NFT, "crossroads")
			here, near, far := network(t, h)
			tt.furnish(h)
			talks := crowd(t, h, here, near, far)
			before := living(talks)
			if all := total(before); all != len(talks) {
				t.Fatalf("of %d connections %d work under the ruleset: %v\n%s", len(talks), all, before, h.sh("nft -a list ruleset"))
			}
			config := h.config(tt.config)
			for round := 0; ; round++ {
				planned := h.try("plan", "--json", config)
				doc := h.document(planned)
				if planned.status != exitBlocked {
					if round == 0 {
						t.Errorf("nothing is blocked, so the test says nothing")
					}
					break
				}
				if round == 3 {
					t.Fatalf("after what it says was done, the plan is blocked:\n%s", h.try("plan", config).stdout)
				}
				if round == 0 {
					t.Log(h.try("plan", config).stdout)
				}
				byHand := false
				for _, b := range doc.Blocks {
					byHand = byHand || strings.Contains(b.Where, "added by hand")
					if !tt.where.MatchString(b.Where) {
						t.Errorf("a block is at %q", b.Where)
					}
				}
				if round == 0 && byHand != (name == "nft") {
					t.Errorf("a block is at a rule that is in no file: %v", byHand)
				}
				tt.mend(h, doc)
			}
			h.ctplan(exitOK, "apply", "--auto-approve", config)
			if after := living(talks); !maps.Equal(before, after) {
				t.Errorf("before: %v\nafter:  %v\n%s\n%s", before, after, h.rules(), h.sh("nft -a list ruleset"))
			}
		})
	}
}

// loads has a ruleset in a file that nftables.service loads by another.
func loads(h *host, ruleset string) {
	h.write("/etc/nftables.d/10-host.nft", ruleset)
	h.write("/etc/nftables.conf", "#!/usr/sbin/nft -f\nflush ruleset\n\ninclude \"/etc/nftables.d/*.nft\"\n")
	h.sh("nft -f /etc/nftables.conf")
}

// runs does what the blocks of a plan say by commands.
func runs(h *host, doc document) {
	h.t.Helper()
	done := map[string]bool{}
	for _, b := range doc.Blocks {
		for _, c := range b.Commands {
			if !done[c] {
				done[c] = true
				h.sh(c)
			}
		}
	}
}

// adds puts the lines that the blocks of a plan name where they say.
func (h *host) adds(doc document) {
	h.t.Helper()
	type addition struct {
		at   int
		line string
	}
	of := map[string][]addition{}
	for _, b := range doc.Blocks {
		for _, m := range regexp.MustCompile("for good by (`[^`]+`(?: and `[^`]+`)*) (before|as the last of the chain at) (/[^:]+):(\\d+)").FindAllStringSubmatch(b.Remedy, -1) {
			at, _ := strconv.Atoi(m[4])
			if m[2] != "before" {
				// The chain's closing brace is the first behind its head that stands alone.
				lines := strings.Split(h.read(m[3]), "\n")
				for at++; strings.TrimSpace(lines[at-1]) != "}"; at++ {
				}
			}
			for line := range strings.SplitSeq(m[1], " and ") {
				if a := (addition{at, strings.Trim(line, "`")}); !slices.Contains(of[m[3]], a) {
					of[m[3]] = append(of[m[3]], a)
				}
			}
		}
	}
	for file, list := range of {
		lines := strings.Split(h.read(file), "\n")
		slices.SortStableFunc(list, func(a, b addition) int { return cmp.Compare(b.at, a.at) })
		for _, a := range list {
			lines = slices.Insert(lines, a.at-1, a.line)
		}
		h.write(file, strings.Join(lines, "\n"))
	}
}

// TestBootOfNative: what a boot loads is held against what is there, by which a
// plan is judged.
func TestBootOfNative(t *testing.T) {
	h := newHost(t, live.NFT, "crossroads")
	h.sh(`
		mkdir -p /run/systemd/system /etc/systemd/system/sysinit.target.wants
		ln -s /lib/systemd/system/nftables.service /etc/systemd/system/sysinit.target.wants/nftables.service`)
	loads(h, natives["states"])
	table := func() (state, source string) {
		t.Helper()
		var status struct {
			Forecast struct {
				Native []struct{ Table, State, Source string }
			}
		}
		out := h.ctplan(exitOK, "status", "--json")
		if err := json.Unmarshal([]byte(out.stdout), &status); err != nil || len(status.Forecast.Native) != 1 || status.Forecast.Native[0].Table != "inet filter" {
			t.Fatalf("%v\n%s", err, out.stdout)
		}
		return status.Forecast.Native[0].State, status.Forecast.Native[0].Source
	}
	if state, source := table(); state != "same" || source != "/etc/nftables.d/10-host.nft:2" {
		t.Errorf("as it was loaded: %s: %s", state, source)
	}
	h.sh("nft insert rule inet filter input position $(nft -a list chain inet filter input | sed -n 's/.*invalid drop.*handle //p') meta nfproto ipv4 ct state untracked udp sport 123 accept")
	if state, source := table(); state != "other" || !strings.Contains(source, "/etc/nftables.d/10-host.nft:7 has another rule there: ct state invalid drop") {
		t.Errorf("with a line that is in no file: %s: %s", state, source)
	}
	config := h.config("conntrack \"x\" {\n  mode     = \"notrack\"\n  firewall = \"iptables\"\n\n  notrack \"ntp\" {\n    protocol    = \"udp\"\n    remote_port = 123\n  }\n}\n")
	if plan := strings.Join(strings.Fields(h.try("plan", config).stdout), " "); !strings.Contains(plan, "a boot does not load the table inet filter as it is now: /etc/nftables.d/10-host.nft:7") {
		t.Errorf("the plan does not warn:\n%s", plan)
	}
	h.sh("sed -i '7i meta nfproto ipv4 ct state untracked udp sport 123 accept' /etc/nftables.d/10-host.nft")
	if state, source := table(); state != "same" {
		t.Errorf("with the line in the file too: %s: %s", state, source)
	}
}
