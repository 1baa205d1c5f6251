package judge_test

import (
	"net/netip"
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/providers/iptables"
)

// TestTableTwice: of a saved file that has a table twice, the last stands.
func TestTableTwice(t *testing.T) {
	r, err := iptables.Parse(host.IPv4, "*filter\n:INPUT DROP\n-A INPUT -j ACCEPT\nCOMMIT\n*filter\n:INPUT DROP\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	j := judge.New(declared.Desired{}, host.Live{}, host.IPv4, []*host.Ruleset{&r}, nil, nil)
	p := &verdict.Packet{
		Hook: verdict.HookInput, Protocol: protocol.TCP, State: verdict.StateNew, TCPFlags: verdict.TCPSyn, In: "eth0",
		Tuple: host.Tuple{Src: netip.MustParseAddr("10.0.0.9"), Dst: netip.MustParseAddr("10.0.0.1"), SrcPort: 40000, DstPort: 80},
	}
	if got := j.End().Verdict(p); got.Verdict != verdict.Dropped {
		t.Errorf("%s by %q", got.Verdict, got.Rule)
	}
}
