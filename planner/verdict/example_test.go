package verdict_test

import (
	"fmt"
	"net/netip"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/providers/iptables"
)

// What becomes of one packet, asked of the text that iptables-save prints.
func Example() {
	rules, err := iptables.Parse(host.IPv4, "*filter\n:INPUT DROP\n-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n")
	if err != nil {
		panic(err)
	}
	evaluator := xt.NewEvaluator(host.IPv4, []host.Ruleset{rules}, verdict.Facts{})
	p := verdict.Packet{Hook: verdict.HookInput, Protocol: protocol.TCP, TCPFlags: verdict.TCPSyn, State: verdict.StateNew, In: "eth0"}
	p.Tuple = host.Tuple{Src: netip.MustParseAddr("10.1.2.3"), Dst: netip.MustParseAddr("192.0.2.1"), SrcPort: 40000, DstPort: 22}
	fmt.Println(evaluator.Verdict(&p).Verdict, "by", evaluator.Verdict(&p).Rule)
	p.Src = netip.MustParseAddr("198.51.100.7")
	fmt.Println(evaluator.Verdict(&p).Verdict, "by", evaluator.Verdict(&p).Rule)
	// Output:
	// accepted by -A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT
	// dropped by policy DROP of INPUT
}
