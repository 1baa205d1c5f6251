package translate

import (
	"slices"
	"strings"
	"testing"
)

func TestNative(t *testing.T) {
	const (
		syn     = "ct state untracked tcp flags & (fin | syn | rst | ack) == syn"
		noSyn   = "ct state untracked tcp flags & (fin | syn | rst | ack) != syn"
		invalid = "packets out of a connection's window, and answers to nothing, are no longer told apart from others"
		none    = "it is written in a way that ctplan does not take apart"
	)
	errors4 := []string{"destination-unreachable", "redirect", "time-exceeded", "parameter-problem"}
	bad := func(before, after string) (out []string) {
		for _, f := range []string{"(syn | rst | ack) == 0x0", "(fin | syn) == fin | syn", "(syn | rst) == syn | rst", "(fin | rst) == fin | rst", "(rst | urg) == rst | urg", "(syn | ack | urg) == syn | ack | urg"} {
			out = append(out, before+"ct state untracked tcp flags & "+f+after)
		}
		return out
	}
	types := func(before, what, after string, numbers ...string) (out []string) {
		for _, n := range numbers {
			out = append(out, before+what+" type "+n+after)
		}
		return out
	}
	for _, tt := range []struct {
		scope Scope
		rule  string
		lines []string
		grade Grade
		why   string
	}{
		{tcpAlone, "tcp dport 22 ct state new counter packets 1 bytes 2 accept", []string{"tcp dport 22 " + syn + " counter packets 1 bytes 2 accept"}, Exact, ""},
		{tcpAlone, `iifname "eth0" tcp dport { 80, 443 } ct state { new } log prefix "a b" accept comment "c"`, []string{`iifname "eth0" tcp dport { 80, 443 } ` + syn + ` log prefix "a b" accept comment "c"`}, Exact, ""},
		{tcpAlone, "ct state established,related accept", append([]string{noSyn + " accept"}, types("", "icmp", " accept", errors4...)...), Exact, ""},
		{tcpAlone, "ct state { established, related } accept", append([]string{noSyn + " accept"}, types("", "icmp", " accept", errors4...)...), Exact, ""},
		{six, "ct state established,related accept", slices.Concat([]string{noSyn + " accept"}, types("ct state untracked ", "icmpv6", " accept", "echo-reply", "destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem")), Narrower, "it no longer matches answers of UDP and protocols other than TCP, UDP and ICMP"},
		{behind, "udp dport 53 ct state new accept", []string{"udp dport 53 ct state untracked accept"}, Exact, ""},
		{everything, "ct state new meta l4proto udp drop", []string{"ct state untracked meta l4proto udp drop"}, Wider, "it also matches answers of UDP"},
		{behind, "ct state new,established accept", []string{"ct state untracked meta l4proto tcp accept", "ct state untracked meta l4proto udp accept", "ct state untracked icmp type echo-reply accept", "ct state untracked icmp type echo-request accept"}, Narrower, "it no longer matches protocols other than TCP, UDP and ICMP"},
		{tcpAlone, "tcp dport 3306 ct state != established drop", append([]string{"tcp dport 3306 " + syn + " drop"}, bad("tcp dport 3306 ", " drop")...), Exact, invalid},
		{tcpAlone, "udp dport 53 ct state new accept", nil, Exact, "untouched"},
		{tcpAlone, "ip6 saddr 2001:db8::/32 tcp dport 22 ct state new accept", nil, Exact, "untouched"},
		{tcpAlone, "ip saddr != 10.0.0.0/8 tcp dport 22 ct state new reject with tcp reset", []string{"ip saddr != 10.0.0.0/8 tcp dport 22 " + syn + " reject with tcp reset"}, Exact, ""},
		{everything, "icmp type echo-request ct state new accept", []string{"icmp type echo-request ct state untracked accept"}, Wider, "it also matches all pings but the first"},
		{six, "icmpv6 type echo-request ct state new drop", []string{"icmpv6 type echo-request ct state untracked drop"}, Exact, ""},
		{tcpAlone, "ct state vmap { invalid : drop, established : accept, related : accept }", slices.Concat(bad("", " drop"), []string{noSyn + " accept"}, types("", "icmp", " accept", errors4...)), Wider, "it also matches errors of ICMP; " + invalid},
		{tcpAlone, "meta l4proto tcp ct state vmap { new : jump web, established : accept }", []string{"meta l4proto tcp " + syn + " jump web", "meta l4proto tcp " + noSyn + " accept"}, Exact, ""},
		{tcpAlone, "tcp flags syn / fin,syn,rst,ack ct state new accept", nil, Exact, "it asks for flags of TCP itself"},
		{tcpAlone, "meta l4proto { tcp, udp } ct state new accept", nil, Exact, "it asks for protocols or types of ICMP in a way that ctplan does not take apart"},
		{tcpAlone, "ct state new ct mark 1 accept", nil, Exact, "it asks for more of a connection than its state"},
		{tcpAlone, "ct direction original accept", nil, Exact, "it asks for more of a connection than its state"},
		{tcpAlone, "ct state @states accept", nil, Exact, none},
		{tcpAlone, "ct state vmap @fates", nil, Exact, none},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			got, touched := New().Native(tt.rule, tt.scope)
			why := strings.Join(slices.Concat(got.Why, got.Note), "; ") + got.None
			if !touched {
				why = "untouched"
			}
			if !slices.Equal(got.Lines, tt.lines) || got.Grade != tt.grade || why != tt.why {
				t.Errorf("got %s, %q\n%s\nwant %s, %q\n%s", got.Grade, why, strings.Join(got.Lines, "\n"), tt.grade, tt.why, strings.Join(tt.lines, "\n"))
			}
		})
	}
}

func TestTakesNative(t *testing.T) {
	for rule, want := range map[string]bool{
		"ct state established,related accept": true, "ct state established counter packets 3 bytes 4 accept": true, "ct state vmap { established : accept, related : accept, invalid : drop }": true,
		"iif lo ct state established accept": false, "ct state != established accept": false, "ct state established drop": false, "ct state related accept": false, "tcp dport 22 accept": false, "ct state vmap { established : jump x }": false,
	} {
		if got := TakesNative(rule, "established"); got != want {
			t.Errorf("%s: %v", rule, got)
		}
	}
}

// FuzzNative feeds rules of anybody: nothing may fail, and lines ask for what is
// untracked or for errors of ICMP.
func FuzzNative(f *testing.F) {
	for _, text := range []string{"tcp dport 22 ct state new accept", "ct state vmap { established : accept, invalid : drop }", `ct state { new , related log prefix "`, "ct state != ,", "icmp type ct state new", "ct state"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, scope := range []Scope{everything, six, tcpAlone} {
			got, _ := New().Native(text, scope)
			for _, l := range got.Lines {
				if !strings.Contains(l, "ct state untracked") && !strings.Contains(l, "icmp") {
					t.Errorf("%q gives %q", text, l)
				}
			}
			TakesNative(text, "established")
		}
	})
}
