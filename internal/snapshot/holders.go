package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/netns"
	"github.com/ctplan/ctplan/providers/nft"
)

// Namespace is another network namespace of the machine, with what stands in
// it that may need connection tracking.
type Namespace struct {
	Inode   uint64          `json:"inode"`             // its identity until it goes
	Path    string          `json:"path,omitempty"`    // where it is mounted
	PID     int             `json:"pid,omitempty"`     // a process in it
	Command string          `json:"command,omitempty"` // that process's name
	NFT     []host.NFTTable `json:"nftables,omitempty"`
	Rules   []Rules         `json:"rules,omitempty"` // of iptables-legacy
}

func newRules(raw iptables.Raw) Rules {
	return Rules{Family: raw.Family, Backend: raw.Backend, Primary: raw.Primary, Version: raw.Version, Text: raw.Text, Incompatible: raw.Incompatible, read: raw}
}

// live parses what the namespace holds.
func (n Namespace) live() (host.Namespace, error) {
	l := host.Namespace{Inode: n.Inode, Path: n.Path, PID: n.PID, Command: n.Command, NFT: n.NFT}
	for _, r := range n.Rules {
		set, err := parseRules(r)
		if err != nil {
			return l, fmt.Errorf("the rules of network namespace %d: %w", n.Inode, err)
		}
		l.Rulesets = append(l.Rulesets, set)
	}
	return l, nil
}

// builtinTables are those that iptables-nft makes and iptables-save shows.
var builtinTables = []string{"filter", "nat", "mangle", "raw", "security"}

// readNFT reads the tables of nftables that the rules do not hold.
func (s *Snapshot) readNFT() {
	hasSet, err := nft.HasSet()
	if err != nil {
		s.Notes = append(s.Notes, note(err, "what of iptables-nft's tables looks a set up is judged without it")...)
	}
	for i := range s.Rules {
		r := &s.Rules[i]
		for _, table := range builtinTables {
			if r.Backend == host.NFT && hasSet(nftFamily[r.Family], table) && !slices.Contains(r.Incompatible, table) {
				r.Incompatible = append(r.Incompatible, table)
			}
		}
	}
	tables, err := nft.Read(func(family, table string) bool {
		if !slices.Contains(builtinTables, table) {
			return false
		}
		return slices.ContainsFunc(s.Rules, func(r Rules) bool {
			return r.Backend == host.NFT && family == nftFamily[r.Family] && !slices.Contains(r.Incompatible, table)
		})
	})
	if err != nil {
		s.NFTUnread = strings.ToValidUTF8(err.Error(), "\uFFFD")
		s.Notes = append(s.Notes, note(err, "rules of native nftables are not taken into account")...)
		return
	}
	if s.NFT = tables; len(tables) == 0 {
		return
	}
	if s.Links, err = nft.Links(); err != nil {
		s.Notes = append(s.Notes, note(err, "rules of native nftables that name one by its number are not known to match")...)
	}
}

var nftFamily = map[host.Family]string{host.IPv4: "ip", host.IPv6: "ip6"}

type othersResult struct {
	list  []Namespace
	notes []string
}

// othersTime bounds the reading of other namespaces, which anybody who may
// start containers can have made in any number and of any size.
const othersTime = 30 * time.Second

// readOthers reads the other network namespaces. It does so only where their
// rules matter to this host: where they can hold a module.
func readOthers(ctx context.Context, root string, runner run.Runner, c host.Conntrack, noNFT bool) (out othersResult) {
	if c.Kind != host.ConntrackModule || !c.Loaded {
		return out
	}
	found, err := netns.Find(root)
	if err != nil {
		out.notes = note(err, "rules in other network namespaces are not taken into account")
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, othersTime)
	defer cancel()
	for _, f := range found {
		n, err := readOther(ctx, runner, f, noNFT)
		if errors.Is(err, netns.ErrGone) {
			continue
		}
		if err != nil {
			out.notes = append(out.notes, note(fmt.Errorf("network namespace %d (%s): %w", f.Inode, strings.TrimSpace(f.Path+" "+f.Command), err), "rules there are not taken into account")...)
		}
		if len(n.NFT) > 0 || len(n.Rules) > 0 {
			out.list = append(out.list, n)
		}
	}
	return out
}

func readOther(ctx context.Context, runner run.Runner, f netns.Namespace, noNFT bool) (Namespace, error) {
	n := Namespace{Inode: f.Inode, Path: f.Path, PID: f.PID, Command: f.Command}
	err := f.Do(func() error {
		var tables []host.NFTTable
		var nftErr error
		if !noNFT {
			tables, nftErr = nft.ReadHolders()
		}
		// What needs no tracking there is nobody's business here.
		n.NFT = slices.DeleteFunc(tables, func(t host.NFTTable) bool { return len(t.Items) == 0 })
		raws, err := iptables.Tools{Runner: runner}.ReadLegacy(ctx)
		for _, raw := range raws {
			n.Rules = append(n.Rules, newRules(raw))
		}
		return errors.Join(nftErr, err)
	})
	return n, err
}

// holderFacts adds what stands in native nftables and in other namespaces.
// Processes come and go: they are no facts.
func (s *Snapshot) holderFacts(add func(address string, values ...string)) {
	if s.NFTUnread != "" {
		add("nftables", s.NFTUnread)
	}
	for _, t := range s.NFT {
		add("nftables."+t.Family+"."+t.Name, tableFact(t))
	}
	for _, n := range s.Namespaces {
		var values []string
		for _, t := range n.NFT {
			values = append(values, tableFact(t))
		}
		for _, r := range n.Rules {
			values = append(values, string(r.Family), r.Text)
		}
		add(fmt.Sprintf("netns.%d", n.Inode), values...)
	}
}

// tableFact is what a plan depends on of a table: all but the elements of its
// sets that go by themselves after a time.
func tableFact(t host.NFTTable) string {
	t.Sets = slices.Clone(t.Sets)
	for i := range t.Sets {
		t.Sets[i].Elements = t.Sets[i].Elements.Lasting()
	}
	text, err := json.Marshal(t)
	if err != nil { // no value of these types has one
		return err.Error()
	}
	return string(text)
}

// checkHolders refuses what no kernel reports.
func (s *Snapshot) checkHolders() error {
	families := []string{"ip", "ip6", "inet", "arp", "bridge", "netdev", ""}
	tables := slices.Clone(s.NFT)
	for _, n := range s.Namespaces {
		tables = append(tables, n.NFT...)
		if n.PID < 0 {
			return fmt.Errorf("namespaces: pid %d", n.PID)
		}
		for _, r := range n.Rules {
			if !slices.Contains(host.Families, r.Family) || r.Backend != host.Legacy {
				return fmt.Errorf("namespaces: rules of family %q and backend %q", r.Family, r.Backend)
			}
		}
	}
	for _, t := range tables {
		if !slices.Contains(families, t.Family) {
			return fmt.Errorf("nftables: family %q", t.Family)
		}
		for i := range t.Sets {
			for _, err := range t.Sets[i].Elements.All() {
				if err != nil {
					return fmt.Errorf("nftables: set %q of table %q: %w", t.Sets[i].Name, t.Name, err)
				}
			}
		}
	}
	return nil
}
