package nftables

import (
	"slices"
	"strconv"
	"strings"
)

// Canonical is one spelling for rules that differ in what nft prints otherwise than
// people write it: counters and comments, quotes, the order in braces and of lists,
// names of services, what is so by itself. It knows no other differences: rules of
// two spellings may still mean the same.
func Canonical(words []string) string {
	var out []string
	ports := false // the words are of ports
	for i := 0; i < len(words); i++ {
		at := func(n int) string {
			if i+n < len(words) {
				return words[i+n]
			}
			return ""
		}
		switch w := words[i]; {
		case w == "counter" && at(1) != "name":
			for i+2 < len(words) && (words[i+1] == "packets" || words[i+1] == "bytes") {
				i += 2
			}
		case w == "comment" && strings.HasPrefix(at(1), `"`):
			i++
		case w == "meta", w == "==":
		case w == "burst" && at(1) == "5" && at(2) == "packets":
			i += 2
		case w == "with" && at(1) == "icmpx" && at(2) == "type" && at(3) == "port-unreachable":
			i += 3
		case w == "with" && at(1) == "icmpx" && at(2) == "port-unreachable":
			i += 2
		case w == "type" && len(out) > 1 && out[len(out)-2] == "with":
		case w == "{":
			end := i + 1
			for end < len(words) && words[end] != "}" && words[end] != "{" {
				end++
			}
			if end < len(words) && words[end] == "}" {
				out = append(out, "{"+elements(words[i+1:end], ports)+"}")
				i = end
			} else {
				out = append(out, w)
			}
		case w == "," && len(out) > 0:
			end := i - 1 // of the list, with the word before
			for end+2 < len(words) && words[end+1] == "," {
				end += 2
			}
			out[len(out)-1] = elements(words[max(0, i-1):end+1], ports)
			i = max(i, end)
		default:
			out = append(out, spell(w, ports))
			if !portWords[w] {
				ports = w == "dport" || w == "sport"
			}
		}
	}
	return strings.Join(out, " ")
}

// portWords stand between the name of a port's field and its value.
var portWords = map[string]bool{"!": true, "=": true, "!=": true, "vmap": true, "map": true, "<": true, ">": true, "-": true}

// elements are those of a set or a list, in order.
func elements(words []string, ports bool) string {
	var list []string
	var one []string
	add := func() {
		if len(one) > 0 {
			list = append(list, strings.Join(one, " "))
		}
		one = nil
	}
	for _, w := range words {
		if w == "," {
			add()
			continue
		}
		one = append(one, spell(w, ports && len(one) == 0))
	}
	add()
	slices.Sort(list)
	return strings.Join(list, ",")
}

// spell is one spelling of a word.
func spell(w string, port bool) string {
	w = strings.TrimPrefix(w, `"`)
	if host, ok := strings.CutSuffix(w, "/32"); ok && strings.Count(host, ".") == 3 {
		return host
	}
	if hex, ok := strings.CutPrefix(w, "0x"); ok {
		if n, err := strconv.ParseUint(hex, 16, 64); err == nil {
			return strconv.FormatUint(n, 10)
		}
	}
	if n := services[w]; port && n != "" {
		return n
	}
	return w
}

// services are ports by names that people write.
var services = map[string]string{
	"ftp-data": "20", "ftp": "21", "ssh": "22", "telnet": "23", "smtp": "25", "domain": "53", "bootps": "67", "bootpc": "68", "tftp": "69",
	"http": "80", "www": "80", "kerberos": "88", "pop3": "110", "sunrpc": "111", "ntp": "123", "netbios-ns": "137", "netbios-dgm": "138",
	"netbios-ssn": "139", "imap": "143", "imap2": "143", "snmp": "161", "snmp-trap": "162", "bgp": "179", "ldap": "389", "https": "443",
	"microsoft-ds": "445", "submissions": "465", "isakmp": "500", "syslog": "514", "dhcpv6-client": "546", "dhcpv6-server": "547", "submission": "587",
	"ipp": "631", "ldaps": "636", "rsync": "873", "domain-s": "853", "imaps": "993", "pop3s": "995", "openvpn": "1194", "nfs": "2049", "mysql": "3306",
	"ipsec-nat-t": "4500", "sip": "5060", "sip-tls": "5061", "mdns": "5353", "postgresql": "5432", "http-alt": "8080",
}

// priorities by nft's names (nft(8)), of bridges and of all others.
var (
	priorities       = map[string]int{"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
	bridgePriorities = map[string]int{"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}
)

// Base is where a chain of a family is called, as BaseOf has it, by the words that
// declare it, and of which devices, sorted. ok is false where that is not clear.
func Base(family string, words []string) (base string, devices []string, ok bool) {
	at := slices.Index(words, "priority")
	if len(words) < 6 || words[0] != "type" || words[2] != "hook" || at < 4 || at+1 >= len(words) {
		return "", devicesOf(words), false
	}
	n, ok := priority(family, words[at+1:])
	return BaseOf(words[1], words[3], n), devicesOf(words[4:at]), ok
}

func priority(family string, words []string) (n int, ok bool) {
	names := priorities
	if family == "bridge" {
		names = bridgePriorities
	}
	sign := 1
	if words[0] == "-" && len(words) > 1 {
		sign, words = -1, words[1:]
	}
	n, err := strconv.Atoi(words[0])
	if n *= sign; err != nil {
		if n, ok = names[words[0]]; !ok {
			return 0, false
		}
	}
	switch rest := words[1:]; {
	case len(rest) == 0:
		return n, true
	case len(rest) == 1: // "filter -5"
		by, err := strconv.Atoi(rest[0])
		return n + by, err == nil && rest[0][0] == '-'
	case len(rest) == 2 && (rest[0] == "+" || rest[0] == "-"):
		by, err := strconv.Atoi(rest[1])
		if rest[0] == "-" {
			by = -by
		}
		return n + by, err == nil
	}
	return 0, false
}

// devicesOf are those of "device eth0", or of "devices = { eth0, eth1 }".
func devicesOf(words []string) (list []string) {
	if len(words) == 0 || words[0] != "device" && words[0] != "devices" {
		return nil
	}
	for _, w := range words[1:] {
		if w != "{" && w != "}" && w != "," && w != "=" {
			list = append(list, strings.TrimPrefix(w, `"`))
		}
	}
	slices.Sort(list)
	return list
}

// BaseOf is the same by its parts.
func BaseOf(kind, hook string, priority int) string {
	return kind + " " + hook + " " + strconv.Itoa(priority)
}
