package apply

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
)

// TestJudgeConnections: refused is what is known to be old, and nothing else.
func TestJudgeConnections(t *testing.T) {
	const armed = time.Hour
	over := func(client string, began time.Duration) flows.SSH {
		c := flows.SSH{Began: began}
		if client != "" {
			c.Session = host.Session{Remote: netip.MustParseAddrPort(client)}
		}
		return c
	}
	const x, y = "192.0.2.1:5001", "[2001:db8::1]:5002"
	for name, c := range map[string]struct {
		before []string
		who    string // of an older version's journal
		now    []flows.SSH
		want   age
		client string
	}{
		"the same":                         {[]string{x}, "", []flows.SSH{over(x, time.Minute)}, ranApply, x},
		"the same, its server gone":        {[]string{x}, "", []flows.SSH{over(x, 0)}, ranApply, x},
		"another, open before":             {[]string{x}, "", []flows.SSH{over(y, armed-time.Second)}, older, y},
		"another, opened since":            {[]string{x}, "", []flows.SSH{over(y, armed+time.Second)}, fresh, ""},
		"another, in the same tick":        {[]string{x}, "", []flows.SSH{over(y, armed)}, fresh, ""},
		"another, age not known":           {[]string{x}, "", []flows.SSH{over(y, 0)}, fresh, ""},
		"no SSH then":                      {nil, "", []flows.SSH{over(y, time.Minute)}, fresh, ""},
		"no SSH at all":                    {nil, "", nil, fresh, ""},
		"no SSH now":                       {[]string{x}, "", nil, untold, ""},
		"nothing known now":                {[]string{x}, "", []flows.SSH{over("", 0)}, untold, ""},
		"no address, open before":          {[]string{x}, "", []flows.SSH{over("", time.Minute)}, older, ""},
		"nothing known then, open before":  {[]string{""}, "", []flows.SSH{over(x, time.Minute)}, older, x},
		"nothing known then, opened since": {[]string{""}, "", []flows.SSH{over(x, armed+time.Second)}, fresh, ""},
		"nothing known then, age unknown":  {[]string{""}, "", []flows.SSH{over(x, 0)}, untold, ""},
		"shown over both":                  {[]string{x}, "", []flows.SSH{over(x, time.Minute), over(y, armed+time.Second)}, fresh, ""},
		"shown over two old ones":          {[]string{x}, "", []flows.SSH{over(y, time.Minute), over(x, time.Minute)}, ranApply, x},
		"an older journal, the same":       {nil, "192.0.2.1 5001 192.0.2.5 22", []flows.SSH{over(x, time.Minute)}, ranApply, x},
		"an older journal, another":        {nil, "192.0.2.1 5001 192.0.2.5 22", []flows.SSH{over(y, armed+time.Second)}, fresh, ""},
	} {
		tx := journal.Transaction{Header: journal.Header{ConfirmWithin: time.Minute, Over: c.before, Who: journal.Who{SSH: c.who}}, Deadline: int64(armed + time.Minute)}
		if client, got := judge(tx, c.now); got != c.want || client != c.client {
			t.Errorf("%s: %d from %q, want %d from %q", name, got, client, c.want, c.client)
		}
	}
}
