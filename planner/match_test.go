package planner

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/xtables"
)

// A small world in which every packet can be tried: the sets that rules
// describe in it are compared with what covers and disjoint claim.
var (
	worldProtos = []string{"tcp", "udp", "icmp"}
	worldAddrs  = []string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "192.0.2.1"}
	worldIfaces = []string{"eth0", "eth1", "lo"}
	worldPorts  = []uint16{22, 80, 443, 8080}
)

func randomMatches(r *rand.Rand) []string {
	var w []string
	add := func(name string, values ...string) {
		if r.IntN(3) != 0 {
			return
		}
		if r.IntN(4) == 0 {
			w = append(w, "!")
		}
		w = append(w, name, values[r.IntN(len(values))])
	}
	add("-p", "tcp", "udp", "6", "icmp")
	add("-s", "10.0.0.1", "10.0.0.0/24", "10.0.0.0/255.255.0.0", "192.0.2.1/32", "0.0.0.0/0")
	add("-d", "10.0.0.2", "10.0.0.0/16", "10.0.1.0/24")
	add("-i", "eth0", "eth+", "lo")
	add("-o", "eth1", "eth+")
	add("--sport", "22", "80:443", "1024:")
	add("--dport", "443", ":80")
	add("--dports", "22,80", "80:443,8080")
	return w
}

func hasPorts(proto string) bool { return proto == "tcp" || proto == "udp" }

// matches is the definition of what a rule's words mean, one packet at a time.
func matches(words []string, proto, src, dst, in, out string, sport, dport uint16) bool {
	for i := 0; i < len(words); {
		not := words[i] == "!"
		if not {
			i++
		}
		name, arg := words[i], words[i+1]
		i += 2
		var hit bool
		switch name {
		case "-p":
			hit = protocol.Canonical(arg) == protocol.Canonical(proto)
		case "-s", "-d":
			var set xtables.PrefixSet
			if !set.Take(false, arg) {
				panic(arg)
			}
			addr := src
			if name == "-d" {
				addr = dst
			}
			var one xtables.PrefixSet
			one.Take(false, addr)
			hit = set.Prefix.Contains(one.Prefix.Addr())
		case "-i":
			hit = arg == in || strings.HasSuffix(arg, "+") && strings.HasPrefix(in, strings.TrimSuffix(arg, "+"))
		case "-o":
			hit = arg == out || strings.HasSuffix(arg, "+") && strings.HasPrefix(out, strings.TrimSuffix(arg, "+"))
		default:
			if !hasPorts(proto) {
				return false
			}
			port := dport
			if name == "--sport" {
				port = sport
			}
			for part := range strings.SplitSeq(arg, ",") {
				lo, hi, isRange := strings.Cut(part, ":")
				from, to := 0, 65535
				if lo != "" {
					fmt.Sscan(lo, &from)
				}
				if !isRange {
					to = from
				} else if hi != "" {
					fmt.Sscan(hi, &to)
				}
				hit = hit || int(port) >= from && int(port) <= to
			}
		}
		if hit == not {
			return false
		}
	}
	return true
}

func TestPacketSets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	covered, apart := 0, 0
	for range 3000 {
		a, b := randomMatches(r), randomMatches(r)
		pa, pb := xtables.PacketsOf(xtables.Parse(a)), xtables.PacketsOf(xtables.Parse(b))
		covers, disjoint := pa.Covers(pb), pa.Disjoint(pb)
		if !covers && !disjoint {
			continue
		}
		for _, proto := range worldProtos {
			for _, src := range worldAddrs {
				for _, dst := range worldAddrs {
					for _, in := range worldIfaces {
						for _, out := range worldIfaces {
							for _, sport := range worldPorts {
								for _, dport := range worldPorts {
									inA := matches(a, proto, src, dst, in, out, sport, dport)
									inB := matches(b, proto, src, dst, in, out, sport, dport)
									if covers && inB && !inA {
										t.Fatalf("%q is said to cover %q, but not %s %s:%d > %s:%d %s %s", a, b, proto, src, sport, dst, dport, in, out)
									}
									if disjoint && inA && inB {
										t.Fatalf("%q and %q are said to be disjoint, but share %s %s:%d > %s:%d %s %s", a, b, proto, src, sport, dst, dport, in, out)
									}
								}
							}
						}
					}
				}
			}
		}
		if covers {
			covered++
		}
		if disjoint {
			apart++
		}
	}
	if covered < 100 || apart < 100 {
		t.Errorf("only %d covering and %d disjoint pairs were tried", covered, apart)
	}
}

func TestCoversKeepsUnknownMatches(t *testing.T) {
	all := xtables.PacketsOf(xtables.Parse(nil))
	limited := xtables.PacketsOf(xtables.Parse([]string{"-m", "limit", "--limit", "5/sec"}))
	if limited.Covers(all) {
		t.Error("a rate-limited rule is said to cover everything")
	}
	if !all.Covers(limited) {
		t.Error("a rule without matches does not cover a limited one")
	}
}
