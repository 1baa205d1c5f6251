package nft

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// debugged are the programs that nft prints with --debug=netlink, as libnftnl
// writes them, one rule a line. Of what only the text of a rule shows the name
// is left.
func debugged(text string) map[ruleID]string {
	programs := map[ruleID]string{}
	var at ruleID
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "  [ ") && at.handle != "":
			programs[at] += shortened(strings.TrimSpace(line))
		case len(words) >= 4 && words[3] != "{" && !strings.HasPrefix(line, "\t"):
			at = ruleID{words[0], words[1], words[2], words[3]}
		case len(words) == 0:
			at = ruleID{}
		}
	}
	return programs
}

var textOnly = regexp.MustCompile(`^\[ (log|limit|quota|counter|dup) .*\]$`)

func shortened(expr string) string {
	expr, _, isInner := strings.Cut(expr, " expr [ ")
	if isInner {
		expr += " ]"
	}
	return textOnly.ReplaceAllString(expr, "[ $1 ]")
}

// debug writes a program as libnftnl does.
func debug(p host.NFTProgram) string {
	var b strings.Builder
	for i := range p {
		b.WriteString("[ " + strings.TrimSpace(debugExpr(&p[i])) + " ]")
	}
	return b.String()
}

// debugWords are data as numbers of four bytes in the host's order.
func debugWords(data []byte) string {
	var words []string
	for at := 0; at < len(data); at += 4 {
		var word [4]byte
		copy(word[:], data[at:])
		words = append(words, fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(word[:])))
	}
	return strings.Join(words, " ")
}

var (
	debugOps   = []string{"eq", "neq", "lt", "lte", "gt", "gte"}
	debugBases = []string{"link", "network", "transport"}
	debugMeta  = []string{"len", "protocol", "priority", "mark", "iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "skuid", "skgid", "nftrace", "rtclassid",
		"secmark", "nfproto", "l4proto", "bri_iifname", "bri_oifname", "pkttype", "cpu"}
	debugCt = []string{"state", "direction", "status", "mark", "secmark", "expiration", "helper", "l3protocol", "src", "dst", "protocol", "proto_src", "proto_dst",
		"label", "packets", "bytes", "avgpkt", "zone", "event", "src_ip", "dst_ip", "src_ip6", "dst_ip6"}
)

func debugExpr(e *host.NFTExpr) string {
	loadOrSet := func(name string) string {
		switch {
		case e.Sets:
			return fmt.Sprintf("%s set %s with reg %d", e.Name, name, e.Src)
		case e.Dir != "":
			return fmt.Sprintf("%s load %s => reg %d , dir %s", e.Name, name, e.Dst, e.Dir)
		}
		return fmt.Sprintf("%s load %s => reg %d", e.Name, name, e.Dst)
	}
	switch e.Name {
	case "meta":
		return loadOrSet(debugMeta[e.Key])
	case "ct":
		return loadOrSet(debugCt[e.Key])
	case "payload":
		if e.Sets {
			return fmt.Sprintf("payload write reg %d => %db @ %s header + %d csum_type 1 csum_off 10 csum_flags 0x0", e.Src, e.Len, debugBases[e.Base], e.Offset)
		}
		return fmt.Sprintf("payload load %db @ %s header + %d => reg %d", e.Len, debugBases[e.Base], e.Offset, e.Dst)
	case "cmp":
		return fmt.Sprintf("cmp %s reg %d %s", debugOps[e.Op], e.Src, debugWords(e.Data))
	case "range":
		return fmt.Sprintf("range %s reg %d %s %s", debugOps[e.Op], e.Src, debugWords(e.Data), debugWords(e.To))
	case "bitwise":
		return fmt.Sprintf("bitwise reg %d = ( reg %d & %s ) ^ %s", e.Dst, e.Src, debugWords(e.Mask), debugWords(e.Xor))
	case "byteorder":
		return fmt.Sprintf("byteorder reg %d = %s(reg %d, %d, %d)", e.Dst, []string{"ntoh", "hton"}[e.Op], e.Src, e.Size, e.Len)
	case "lookup":
		dreg := ""
		if strings.Contains("ways nets to tomark __map0 __map1", e.Set) {
			dreg = fmt.Sprintf(" dreg %d", e.Dst)
		}
		return fmt.Sprintf("lookup reg %d set %s%s 0x%x", e.Src, e.Set, dreg, e.Flags)
	case "immediate":
		switch {
		case e.Chain != "":
			return fmt.Sprintf("immediate reg %d %s -> %s", e.Dst, e.Verdict, e.Chain)
		case e.Verdict != "":
			return fmt.Sprintf("immediate reg %d %s", e.Dst, e.Verdict)
		}
		return fmt.Sprintf("immediate reg %d %s", e.Dst, debugWords(e.Data))
	}
	return debugStatement(e)
}

func debugStatement(e *host.NFTExpr) string {
	present := ""
	if e.Flags&1 != 0 {
		present = " present"
	}
	reg := func(name string, register uint32) string {
		if register == 0 {
			return ""
		}
		return fmt.Sprintf(" %s reg %d", name, register)
	}
	flags := ""
	if e.Flags != 0 {
		flags = fmt.Sprintf(" flags 0x%x", e.Flags)
	}
	family := map[uint32]string{2: " ip", 10: " ip6"}[e.Code]
	switch e.Name {
	case "nat":
		return "nat " + []string{"snat", "dnat"}[e.Key] + family + reg("addr_min", e.Src) + reg("addr_max", e.Src3) + reg("proto_min", e.Src2) + reg("proto_max", e.Src4) + flags
	case "masq", "redir":
		return e.Name + reg("proto_min", e.Src2) + reg("proto_max", e.Src4) + flags
	case "tproxy":
		return "tproxy" + family + reg("addr", e.Src) + reg("port", e.Src2)
	case "reject":
		return fmt.Sprintf("reject type %d code %d", e.Key, e.Code)
	case "objref":
		if e.Set != "" {
			return fmt.Sprintf("objref sreg %d set %s", e.Src, e.Set)
		}
		return fmt.Sprintf("objref type %d name %s", e.Key, e.Object)
	case "exthdr":
		kind := []string{"ipv6", "tcpopt"}[e.Op]
		if e.Sets {
			return fmt.Sprintf("exthdr write %s reg %d => %db @ %d + %d", kind, e.Src, e.Len, e.Key, e.Offset)
		}
		return fmt.Sprintf("exthdr load %s %db @ %d + %d%s => reg %d", kind, e.Len, e.Key, e.Offset, present, e.Dst)
	case "fib":
		question := fibValue(e.Flags&^0x20, e.Key).name
		if e.Flags&0x20 != 0 {
			question += " present"
		}
		return fmt.Sprintf("%s => reg %d", question, e.Dst)
	case "rt":
		return fmt.Sprintf("rt load %s => reg %d", []string{"classid", "nexthop4", "nexthop6", "tcpmss"}[e.Key], e.Dst)
	case "socket":
		return fmt.Sprintf("socket load %s => reg %d", []string{"transparent", "mark"}[e.Key], e.Dst)
	case "hash":
		return fmt.Sprintf("hash reg %d = jhash(reg %d, %d, 0x1) %% mod %d", e.Dst, e.Src, e.Len, e.Size)
	case "numgen":
		return fmt.Sprintf("numgen reg %d = %s mod %d", e.Dst, []string{"inc", "random"}[e.Key], e.Size)
	case "dynset":
		timeout := map[uint32]string{0: "0ms", 1: "30000ms"}[e.Op]
		return fmt.Sprintf("dynset %s reg_key %d set %s timeout %s", []string{"add", "update"}[e.Op], e.Src, e.Set, timeout)
	}
	return e.Name
}
