package e2e

import (
	"encoding/json"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	live "github.com/ctplan/ctplan/planner/host"
)

// TestAnswersOfServers has a host that asks name servers by UDP, and lets their
// answers in by their state alone, do without tracking. The plan says which accept
// blocks let in those that the host is configured to ask: with these, answers come
// in, from both families, and nobody else's.
func TestAnswersOfServers(t *testing.T) {
	h := newHost(t, live.NFT, "client-1")
	here, near, far := network(t, h)
	const rules = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -p ICMP -j ACCEPT\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT\nCOMMIT\n"
	h.RunInput(strings.Replace(rules, "ICMP", "icmp", 1), "iptables-restore")
	h.RunInput(strings.Replace(rules, "ICMP", "ipv6-icmp", 1), "ip6tables-restore")
	h.sh("rm -f /etc/resolv.conf /etc/chrony* /etc/ntp* /etc/systemd/timesyncd.conf /etc/systemd/network/*")
	h.write("/etc/resolv.conf", "nameserver 10.32.0.2\nnameserver fd32::2\n")
	h.write("/etc/network/interfaces", "auto near\niface near inet dhcp\n")
	const bare = "conntrack \"x\" {\n mode = \"notrack\"\n stateful_rules = \"translate\"\n allow_risk = [\"wider_rules\"]\n notrack \"all\" { }\n"
	var plan struct {
		Blocks []struct {
			Risk   string `json:"risk"`
			Remedy string `json:"remedy"`
		} `json:"blocks"`
	}
	if err := json.Unmarshal([]byte(h.ctplan(exitBlocked, "plan", "--json", h.config(bare+"}\n")).stdout), &plan); err != nil {
		t.Fatal(err)
	}
	// The words of the remedy, as blocks.
	hcl := bare
	for _, m := range regexp.MustCompile(`accept "(\w+)" with (.*?) \(`).FindAllStringSubmatch(plan.Blocks[0].Remedy, -1) {
		hcl += " accept \"" + m[1] + "\" {\n" + regexp.MustCompile(`, (\w+ =)`).ReplaceAllString(m[2], "\n$1") + "\n }\n"
	}
	if plan.Blocks[0].Risk != "narrower_rules" || !strings.Contains(hcl, `"fd32::2"`) || !strings.Contains(hcl, "local_port = 68") {
		t.Fatalf("%+v\n%s", plan.Blocks[0], hcl)
	}
	path := h.config(hcl + "}\n")

	asks := func(server *space, addr string, port int) bool {
		var at, from net.PacketConn
		server.do(t, func() (err error) {
			at, err = net.ListenPacket("udp", (&net.UDPAddr{IP: net.ParseIP(addr), Port: port}).String())
			return err
		})
		defer at.Close()
		here.do(t, func() (err error) { from, err = net.ListenPacket("udp", ":0"); return err })
		defer from.Close()
		buf := make([]byte, 16)
		if _, err := from.WriteTo([]byte("who?"), at.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		at.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, asker, err := at.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := at.WriteTo([]byte("me"), asker); err != nil {
			t.Fatal(err)
		}
		from.SetReadDeadline(time.Now().Add(crossing))
		_, _, err = from.ReadFrom(buf)
		return err == nil
	}
	if !asks(far, farAddr[live.IPv4], 53) || !asks(far, farAddr[live.IPv6], 53) || !asks(near, nearAddr[live.IPv4], 53) {
		t.Fatal("answers do not come in by their state")
	}
	h.sh("conntrack -F 2>/dev/null") // what was asked elsewhere is not open any more
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	if !asks(far, farAddr[live.IPv4], 53) || !asks(far, farAddr[live.IPv6], 53) {
		t.Errorf("answers of the name servers do not come in\n%s", h.rules())
	}
	if asks(near, nearAddr[live.IPv4], 53) || asks(far, farAddr[live.IPv4], 54) {
		t.Errorf("what this host is not configured to ask gets in\n%s", h.rules())
	}

	// A block for one of them alone leaves the others out, and that is told.
	r := h.ctplan(exitOK, "plan", h.config(bare+" accept \"dns\" {\n protocol = \"udp\"\n remote = [\"10.32.0.2\", \"fd32::2\"]\n remote_port = 53\n }\n}\n"))
	if text := strings.Join(strings.Fields(r.stdout), " "); !strings.Contains(text, `no block lets in what this host is configured to ask, which takes accept "dhcp" with protocol = "udp", local_port = 68, remote_port = 67`) {
		t.Errorf("not told:\n%s", r.stdout)
	}
}
