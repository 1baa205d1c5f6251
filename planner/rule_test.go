package planner

import (
	"strings"
	"testing"
)

func rule(words ...string) Rule { return Rule{Words: words, Text: strings.Join(words, " ")} }

func fields(s string) Rule { return rule(strings.Fields(s)...) }

func TestKeyEvensOutSpelling(t *testing.T) {
	same := [][]string{
		{"-j NOTRACK", "-j CT --notrack"},
		{"-s 10.0.0.1/32 -j ACCEPT", "-s 10.0.0.1 -j ACCEPT", "--source 10.0.0.1 -j ACCEPT"},
		{"-p tcp -m tcp --dport 22 -j ACCEPT", "-p tcp --dport 22 -j ACCEPT", "-p 6 --destination-port 22 -j ACCEPT"},
		{"-p 4 -j ACCEPT", "-p ipencap -j ACCEPT", "-p ipv4 -j ACCEPT"},
		{"-m state --state RELATED,ESTABLISHED -j ACCEPT", "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"},
		{"-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT", "-p tcp ! --syn -j ACCEPT"},
		{"-m comment --comment a -p udp -j ACCEPT", "-p udp -m comment --comment a -j ACCEPT"},
		{"-d 2001:db8::1/128 -j DROP", "-d 2001:db8::1 -j DROP"},
	}
	for _, group := range same {
		for _, other := range group[1:] {
			if a, b := Key(fields(group[0]).Words), Key(fields(other).Words); a != b {
				t.Errorf("%q and %q have keys\n%q\n%q", group[0], other, a, b)
			}
		}
	}
	different := []string{
		"-j ACCEPT", "-j DROP", "-g ACCEPT", "-p tcp -j ACCEPT", "! -p tcp -j ACCEPT", "-p tcp --dport 22 -j ACCEPT",
		"-p tcp --sport 22 -j ACCEPT", "-s 10.0.0.0/24 -j ACCEPT", "-d 10.0.0.0/24 -j ACCEPT", "-j CT --zone 1", "-j CT --notrack",
		"-m comment --comment a -j ACCEPT", "-m comment --comment b -j ACCEPT", "-m socket -j ACCEPT",
		"-m mark --mark 1 -j ACCEPT", "-m connmark --mark 1 -j ACCEPT",
	}
	for i, a := range different {
		for _, b := range different[i+1:] {
			if Key(fields(a).Words) == Key(fields(b).Words) {
				t.Errorf("%q and %q have one key", a, b)
			}
		}
	}
}

func TestNeeds(t *testing.T) {
	tests := []struct {
		table, rule string
		want        need
	}{
		{"filter", "-p tcp --dport 22 -j ACCEPT", needNothing},
		{"filter", "-m state --state ESTABLISHED -j ACCEPT", needState},
		{"filter", "-m conntrack --ctstate NEW -j ACCEPT", needState},
		{"filter", "-m connlimit --connlimit-above 3 -j REJECT", needState},
		{"mangle", "-j CONNMARK --restore-mark", needState},
		{"mangle", "-j MARK --set-xmark 0x1/0xffffffff", needNothing},
		{"raw", "-j CT --notrack", needModule},
		{"raw", "-j NOTRACK", needModule},
		{"raw", "-j CT --zone 3", needState},
		{"raw", "-j CT --helper ftp", needState},
		{"nat", "-o eth0 -j MASQUERADE", needNAT},
		{"nat", "-j DOCKER", needNAT},
		{"filter", "-j CT", needState},
	}
	for _, tt := range tests {
		if got := needsOf(tt.table, fields(tt.rule).Words); got != tt.want {
			t.Errorf("%s: %q: got %d, want %d", tt.table, tt.rule, got, tt.want)
		}
	}
}

// A comment is anyone's to choose, and iptables-save prints it without quotes
// when it looks harmless.
func TestCommentsMeanNothing(t *testing.T) {
	for _, comment := range []string{"-m", "-j", "!", "state", "-m state", "--ctstate", "CT", "-jCT", "--notrack", "x -j DROP"} {
		r := rule("-p", "tcp", "-m", "comment", "--comment", comment, "-j", "ACCEPT")
		if got := needsOf("filter", r.Words); got != needNothing {
			t.Errorf("comment %q makes the rule need %d", comment, got)
		}
		s := parseSpec(r.Words)
		if s.target != "ACCEPT" || len(s.modules) != 1 || !packetsOf(s).covers(packetsOf(parseSpec([]string{"-p", "tcp"}))) {
			t.Errorf("comment %q changes the rule to %+v", comment, s)
		}
	}
	// The words that a comment hides are found nonetheless.
	r := rule("-m", "comment", "--comment", "-m", "-m", "state", "--state", "NEW", "-j", "ACCEPT")
	if got := needsOf("filter", r.Words); got != needState {
		t.Errorf("a state match behind the comment -m is not found: %d", got)
	}
}

func TestMatchesUntracked(t *testing.T) {
	tests := map[string]bool{
		"-m state --state UNTRACKED -j ACCEPT":                      true,
		"-m conntrack --ctstate ESTABLISHED,UNTRACKED -j ACCEPT":    true,
		"-m conntrack ! --ctstate INVALID -j ACCEPT":                true,
		"-m conntrack --ctstate ESTABLISHED -j ACCEPT":              false,
		"-m conntrack ! --ctstate UNTRACKED -j DROP":                false,
		"-m conntrack ! --ctstate INVALID --ctproto 6 -j ACCEPT":    false,
		"-m connlimit --connlimit-above 3 -j DROP":                  false,
		"-m state ! --state INVALID -j CONNMARK --restore-mark":     false,
		"-p tcp -m state ! --state INVALID,NEW -m tcp -j ACCEPT":    true,
		"-m conntrack --ctstate NEW -m comment --comment UNTRACKED": false,
	}
	for text, want := range tests {
		if got := parseSpec(strings.Fields(text)).matchesUntracked(); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{
		"-p\x00tcp\x00-m\x00tcp\x00--dport\x0022\x00-j\x00ACCEPT", "!\x00!\x00-s", "-c\x001", "--tcp-flags\x00a", "-m\x00recent\x00--set\x00-j\x00X",
		"-s\x00!\x0010.0.0.0/8\x00-g\x00X", "--comment\x00-j\x00-j", "-i\x00+",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := rule(strings.Split(s, "\x00")...)
		sp := parseSpec(r.Words)
		p := packetsOf(sp)
		if !p.covers(p) && len(p.rest) == 0 {
			t.Errorf("%q does not cover itself: %+v", r.Words, p)
		}
		if needsOf("filter", r.Words) != needNothing && !mayNeed("filter", r.Words) {
			t.Errorf("the quick look misses %q", r.Words)
		}
		_ = Key(r.Words)
	})
}
