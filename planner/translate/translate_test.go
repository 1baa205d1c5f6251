package translate

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

func rule(text string) *host.Rule {
	return &host.Rule{Chain: "INPUT", Text: text, Words: xtables.Words(text)}
}

// everything is a host on which nothing is tracked any more, tcpAlone one where
// that is so of TCP.
var (
	everything = Scope{Family: host.IPv4}
	six        = Scope{Family: host.IPv6}
	tcpAlone   = Scope{Family: host.IPv4, Errors: true, Untracks: func(proto string) (touched, covered bool) { return proto == "tcp", proto == "tcp" }}
	behind     = Scope{Family: host.IPv4, Answered: yes, Related: yes}
	dns        = Scope{Family: host.IPv4, Answers: []string{`"dns"`}}
)

// without is the text of a twin without its mark.
func without(text string) string {
	before, rest, _ := strings.Cut(text, `-m comment --comment "`+markPrefix)
	_, after, _ := strings.Cut(rest, `"`)
	return strings.TrimSpace(before + strings.TrimPrefix(after, " "))
}

func yes() bool { return true }

func TestRule(t *testing.T) {
	const invalid = "packets out of a connection's window, and answers to nothing, are no longer told apart from others"
	bad := func(before, after string) (out []string) {
		for _, f := range badForms {
			out = append(out, before+f.text+after)
		}
		return out
	}
	errors := func(after string) (out []string) {
		for _, n := range []string{"3", "5", "11", "12"} {
			out = append(out, "-p icmp -m icmp --icmp-type "+n+after)
		}
		return out
	}
	const syn, noSyn = "--tcp-flags FIN,SYN,RST,ACK SYN", "! --tcp-flags FIN,SYN,RST,ACK SYN"
	for _, tt := range []struct {
		scope Scope
		rule  string
		twins []string
		grade Grade
		why   string // and what is noted, or why there is no twin
	}{
		{everything, "-m state --state RELATED,ESTABLISHED -j ACCEPT",
			slices.Concat([]string{"-p tcp -m tcp " + noSyn + " -j ACCEPT", "-p icmp -m icmp --icmp-type 0 -j ACCEPT"}, errors(" -j ACCEPT")),
			Narrower, "it no longer matches answers of UDP and protocols other than TCP, UDP and ICMP"},
		{dns, "-p udp -m state --state ESTABLISHED -j ACCEPT", []string{"-p udp"}, Wider, `answers that show no sign of being one are let in by accept "dns" alone, and so does whatever is sent from there; no packet of a conversation meets it, so a rule that does nothing holds its place`},
		{tcpAlone, "-m state --state RELATED,ESTABLISHED -j ACCEPT",
			append([]string{"-p tcp -m conntrack --ctstate UNTRACKED -m tcp " + noSyn + " -j ACCEPT"}, errors(" -j ACCEPT")...), Exact, ""},
		{tcpAlone, "-p udp -m udp --dport 53 -m state --state NEW -j ACCEPT", nil, Exact, "untouched"},
		{tcpAlone, "-m state --state INVALID -j DROP", bad("-p tcp -m conntrack --ctstate UNTRACKED -m tcp ", " -j DROP"), Wider, "it also matches errors of ICMP; " + invalid},
		{everything, "-p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT", []string{"-p tcp -m tcp --dport 22 " + syn + " -j ACCEPT"}, Exact, ""},
		{everything, "-m state --state NEW -m tcp -p tcp --dport 22 -j ACCEPT", []string{"-p tcp -m tcp --dport 22 " + syn + " -j ACCEPT"}, Exact, ""},
		{everything, "-p tcp -m state --state NEW -m multiport --dports 80,443 -j ACCEPT", []string{"-p tcp -m tcp " + syn + " -m multiport --dports 80,443 -j ACCEPT"}, Exact, ""},
		{everything, "-p tcp --syn -m state --state NEW -j ACCEPT", []string{"-p tcp -m tcp --syn -j ACCEPT"}, Exact, ""},
		{everything, "-p tcp -m tcp " + noSyn + " -m state --state NEW -j DROP", []string{"-p tcp -m tcp " + noSyn}, Exact, "no packet of a conversation meets it, so a rule that does nothing holds its place"},
		{everything, "-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK -m state --state ESTABLISHED -j ACCEPT", []string{"-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK -j ACCEPT"}, Exact, ""},
		{everything, "-p tcp -m tcp --tcp-flags RST RST -m state --state NEW,INVALID -j DROP", nil, Exact, "it asks for flags of TCP itself, and iptables keeps no two such conditions apart"},
		{everything, "-m state --state INVALID -j DROP", bad("-p tcp -m tcp ", " -j DROP"), Exact, invalid},
		{everything, "-p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT", []string{"-p udp -m udp --dport 53 -j ACCEPT"}, Wider, "it also matches answers of UDP"},
		{behind, "-p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT", []string{"-p udp -m udp --dport 53 -j ACCEPT"}, Exact, ""},
		{everything, "-p udp -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", []string{"-p udp -j ACCEPT"}, Exact, ""},
		{everything, "-p icmp -m icmp --icmp-type 8 -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT", []string{"-p icmp -m icmp --icmp-type 8 -j ACCEPT"}, Exact, ""},
		{six, "-p ipv6-icmp -m state --state RELATED -j ACCEPT", []string{"-p ipv6-icmp -m icmp6 --icmpv6-type 1 -j ACCEPT", "-p ipv6-icmp -m icmp6 --icmpv6-type 2 -j ACCEPT",
			"-p ipv6-icmp -m icmp6 --icmpv6-type 3 -j ACCEPT", "-p ipv6-icmp -m icmp6 --icmpv6-type 4 -j ACCEPT"}, Exact, ""},
		{six, "-m state --state NEW,RELATED,ESTABLISHED -j ACCEPT", []string{"-j ACCEPT"}, Wider, "it also matches neighbour discovery"},
		{six, "-m conntrack ! --ctstate INVALID -j ACCEPT", []string{"-j ACCEPT"}, Exact, ""},
		{everything, "-p tcp -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP",
			append([]string{"-p tcp -m tcp " + syn + " -j DROP"}, bad("-p tcp -m tcp ", " -j DROP")...), Exact, invalid},
		{everything, "-p tcp -m conntrack --ctstate NEW,UNTRACKED -m tcp --dport 22 -j ACCEPT", []string{"-p tcp -m tcp --dport 22 " + syn + " -j ACCEPT"}, Exact, ""},
		{tcpAlone, "-m conntrack --ctstate INVALID,NEW,UNTRACKED -j dynamic", nil, Wider, "it also matches open connections of TCP, the first answer of TCP and errors of ICMP; packets out of a connection's window, and answers to nothing, are no longer told apart from others"},
		{Scope{Family: host.IPv4, Answered: yes, Untracks: tcpAlone.Untracks}, "-m conntrack --ctstate NEW,UNTRACKED -j ACCEPT", nil, Exact, "untouched"},
		{everything, "-p icmp -m icmp --icmp-type 8 -m state --state NEW -j ACCEPT", []string{"-p icmp -m icmp --icmp-type 8 -j ACCEPT"}, Wider, "it also matches all pings but the first"},
		{everything, "-p icmp -m icmp --icmp-type 8 -m state --state NEW -j DROP", []string{"-p icmp -m icmp --icmp-type 8 -j DROP"}, Exact, ""},
		{everything, "-p tcp -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT", []string{"-p tcp -m tcp " + noSyn + " -j ACCEPT"}, Exact, ""},
		{everything, "-p tcp -m tcp --dport 22 -m state --state NEW -m recent --update --seconds 60 --hitcount 4 --name SSH --mask 255.255.255.255 --rsource -j DROP",
			[]string{"-p tcp -m tcp --dport 22 " + syn + " -m recent --update --seconds 60 --hitcount 4 --name SSH --mask 255.255.255.255 --rsource -j DROP"}, Exact, ""},
		{behind, "-p udp -m state --state NEW -m limit --limit 5/sec -j ACCEPT", []string{"-p udp -m limit --limit 5/sec -j ACCEPT"}, Wider, "-m limit counts every packet but those of TCP, not only the first of a conversation"},
		{everything, "-p tcp -m conntrack --ctstate NEW --ctorigsrc 10.0.0.0/8 -j ACCEPT", []string{"-s 10.0.0.0/8 -p tcp -m tcp " + syn + " -j ACCEPT"}, Exact, ""},
		{everything, "-p tcp -m conntrack --ctstate ESTABLISHED --ctdir REPLY --ctorigdstport 443 -j ACCEPT", []string{"-p tcp -m tcp --sport 443 " + noSyn + " -j ACCEPT"}, Exact, ""},
		{everything, "-p tcp -m conntrack --ctstate ESTABLISHED --ctorigsrc 10.0.0.0/8 -j ACCEPT",
			[]string{"-s 10.0.0.0/8 -p tcp -m tcp " + noSyn + " -j ACCEPT", "-d 10.0.0.0/8 -p tcp -m tcp " + noSyn + " -j ACCEPT"}, Wider, "it also matches open connections of TCP and the first answer of TCP"},
		{everything, "-p tcp -m conntrack --ctdir ORIGINAL -m tcp --dport 80 -j ACCEPT", []string{"-p tcp -m tcp --dport 80 -j ACCEPT"}, Exact, ""},
		{everything, "-i eth1 -p tcp -m conntrack --ctdir ORIGINAL -j ACCEPT", []string{"-i eth1 -p tcp -j ACCEPT"}, Wider, "it also matches open connections of TCP and the first answer of TCP"},
		{everything, "-p tcp -m conntrack --ctdir REPLY -j ACCEPT", nil, Exact, "which way of its connection a packet goes shows in nothing that the rule asks for, neither addresses nor ports nor interfaces"},
		{everything, "-p tcp -m conntrack --ctstatus ASSURED -j ACCEPT", []string{"-p tcp -m tcp " + noSyn + " -j ACCEPT"}, Wider, "it also matches the first answer of TCP"},
		{everything, "-p tcp -m conntrack --ctstatus EXPECTED -j ACCEPT", nil, Exact, "no packet shows the status EXPECTED"},
		{everything, "-p tcp -m conntrack --ctexpire 10:20 -j ACCEPT", nil, Exact, "no packet shows --ctexpire"},
		{everything, "-p tcp -m connlimit --connlimit-above 3 -j DROP", nil, Exact, "-m connlimit works on connections alone, and nothing stateless does the same"},
		{everything, "-m state --state NEW -j CONNMARK --save-mark", nil, Exact, "the target CONNMARK works on connections alone, and nothing stateless does the same"},
		{everything, `-p tcp -m state --state NEW -m comment --comment "her \"own\" one" -j ACCEPT`, []string{`-p tcp -m tcp ` + syn + ` -m comment --comment "her \"own\" one" -j ACCEPT`}, Exact, ""},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			r := rule(tt.rule)
			got, touched := New().Rule(r, tt.scope)
			why := strings.Join(slices.Concat(got.Why, got.Note), "; ") + got.None
			if !touched {
				why = "untouched"
			}
			var twins []string
			for _, w := range got.Twins {
				twins = append(twins, without(w.Text))
				back, ok := Original(&w)
				if !ok || xtables.Key(back.Words) != xtables.Key(r.Words) {
					t.Errorf("%s\nstands for %q, %v", w.Text, back.Text, ok)
				}
				again, _ := New().Rule(&back, tt.scope)
				if !slices.EqualFunc(again.Twins, got.Twins, func(a, b host.Rule) bool { return xtables.Key(a.Words) == xtables.Key(b.Words) }) {
					t.Errorf("what stands for %s is not what stands for %s", back.Text, r.Text)
				}
			}
			if !slices.Equal(twins, tt.twins) || got.Grade != tt.grade || why != tt.why {
				t.Errorf("got %s, %q\n%s\nwant %s, %q\n%s", got.Grade, why, strings.Join(twins, "\n"), tt.grade, tt.why, strings.Join(tt.twins, "\n"))
			}
		})
	}
}

// FuzzOriginal feeds rules of anybody: nothing may fail, and what is translated
// follows from its twins.
func FuzzOriginal(f *testing.F) {
	for _, text := range []string{
		"-m state --state NEW -j ACCEPT", "-p tcp -m tcp --dport 22 -m conntrack --ctstate NEW --ctorigsrc 10.0.0.1 -j DROP",
		`-m comment --comment "ctplan tcp+syn: -m state --state NEW" -j ACCEPT`, `-m comment --comment "ctplan s+d+bad9+type300: -m conntrack " -g x`, `-p ! tcp -m state ! --state "NEW`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := rule(text)
		Original(r)
		for _, scope := range []Scope{everything, six, tcpAlone} {
			got, _ := New().Rule(r, scope)
			for _, w := range got.Twins {
				if back, ok := Original(&w); !ok || !IsTwin(r) && xtables.Key(back.Words) != xtables.Key(r.Words) {
					t.Errorf("%q\nbecomes %q\nwhich stands for %q, %v", text, w.Text, back.Text, ok)
				}
			}
		}
	})
}
