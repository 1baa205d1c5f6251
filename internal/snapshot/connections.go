package snapshot

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/kmod"
	"github.com/ctplan/ctplan/providers/routes"
	"github.com/ctplan/ctplan/providers/servers"
)

// DefaultConnections is how many tracked connections a snapshot file keeps
// unless told otherwise.
const DefaultConnections = 10_000

// ReadConnections reads what is connected now, at most limit tracked
// connections (0: all), and adds it to the snapshot with a note for what could
// not be read. sshConnection is the environment's SSH_CONNECTION.
//
// Connections are no facts: they come and go, and do not make a plan stale.
func (s *Snapshot) ReadConnections(root, sshConnection string, limit int) {
	s.readConnections(s.connections(root, sshConnection, limit))
	s.beside(root)
}

// beside reads what connections depend on.
func (s *Snapshot) beside(root string) {
	s.Connections.Routing, s.Connections.Servers = routes.Read(root), servers.Read(root)
}

func (s *Snapshot) readConnections(o flows.Options) {
	o.Tracked, o.Expect = s.Conntrack.Loaded, s.Conntrack.Count
	s.take(flows.Read(o))
}

// JudgeConnections is ReadConnections, with what judge does for them: it begins
// while the kernel still lists what it tracks, and is done again where that list
// turns out not to be whole.
func (s *Snapshot) JudgeConnections(root, sshConnection string, judge func(*Snapshot) error) error {
	before := s.Notes
	c, notes, settle := flows.ReadAhead(s.connections(root, sshConnection, 0))
	s.take(c, notes)
	s.beside(root)
	err := judge(s)
	if settle() == nil {
		return err
	}
	s.Notes = before
	s.ReadConnections(root, sshConnection, 0)
	return judge(s)
}

// connections says what to read of them.
func (s *Snapshot) connections(root, sshConnection string, limit int) flows.Options {
	return flows.Options{
		Root: root, SSHConnection: sshConnection, Limit: limit, Tracked: s.Conntrack.Loaded, Expect: s.Conntrack.Count,
		Sets: slices.ContainsFunc(s.Rules, func(r Rules) bool { return strings.Contains(r.Text, "--match-set ") }),
	}
}

func (s *Snapshot) take(c *host.Connections, notes []string) {
	for i := range c.Addresses {
		c.Addresses[i].Interface = strings.ToValidUTF8(c.Addresses[i].Interface, "\uFFFD")
	}
	for i := range c.Routes {
		c.Routes[i].Interface = strings.ToValidUTF8(c.Routes[i].Interface, "\uFFFD")
	}
	s.Connections = c
	for _, n := range notes {
		if n = strings.ToValidUTF8(n, "\uFFFD"); !slices.Contains(s.Notes, n) {
			s.Notes = append(slices.Clip(s.Notes), n)
		}
	}
}

// Observe reads the connections once more and adds those that are new. The
// number of tracked connections is the new one.
func (s *Snapshot) Observe(root, sshConnection string) error {
	now, err := kmod.ReadConntrack(root)
	if err != nil {
		return err
	}
	before := s.Connections
	s.Conntrack.Count, s.Conntrack.Drops, s.Conntrack.EarlyDrops = now.Count, now.Drops, now.EarlyDrops
	s.ReadConnections(root, sshConnection, 0)
	if before == nil {
		return nil
	}
	type flow struct {
		protocol    uint8
		orig, reply host.Tuple
	}
	flows, sockets := map[flow]int{}, map[host.Socket]bool{}
	for i, f := range s.Connections.Flows {
		flows[flow{f.Protocol, f.Orig, f.Reply}] = i
	}
	for _, k := range s.Connections.Sockets {
		sockets[k] = true
	}
	for _, f := range before.Flows {
		if i, ok := flows[flow{f.Protocol, f.Orig, f.Reply}]; ok {
			s.Connections.Flows[i] = f // as it was while it was open
			continue
		}
		s.Connections.Flows = append(s.Connections.Flows, f)
	}
	for _, k := range before.Sockets {
		if !sockets[k] {
			s.Connections.Sockets = append(s.Connections.Sockets, k)
		}
	}
	s.Connections.Total = max(s.Connections.Total, int64(len(s.Connections.Flows)))
	return nil
}

// Limited is the snapshot with at most limit tracked connections, for a file.
func (s *Snapshot) Limited(limit int) *Snapshot {
	if s.Connections == nil || len(s.Connections.Flows) <= limit {
		return s
	}
	out, c := *s, *s.Connections
	c.Flows = c.Flows[:limit]
	out.Connections = &c
	return &out
}

// checkConnections refuses what no kernel reports.
func checkConnections(c *host.Connections) error {
	if c == nil {
		return nil
	}
	plain := func(list ...netip.Addr) bool {
		for _, a := range list {
			if !a.IsValid() || a.Zone() != "" || a.Is4() != list[0].Is4() {
				return false
			}
		}
		return true
	}
	for _, f := range c.Flows {
		if !plain(f.Orig.Src, f.Orig.Dst, f.Reply.Src, f.Reply.Dst) {
			return fmt.Errorf("connections: the flow %v has no four addresses of one family", f.Orig)
		}
	}
	for _, s := range c.Sockets {
		if !plain(s.Local.Addr()) || !s.Listening && !plain(s.Local.Addr(), s.Remote.Addr()) {
			return fmt.Errorf("connections: the socket %v has no two addresses of one family", s.Local)
		}
	}
	for _, a := range c.Addresses {
		if !a.Prefix.IsValid() || a.Prefix.Addr().Zone() != "" {
			return errors.New("connections: an address is not valid")
		}
	}
	for _, s := range c.Servers {
		if s.Addr.IsValid() && s.Addr.Zone() != "" || !path.IsAbs(s.File) || !utf8.ValidString(s.File) {
			return fmt.Errorf("connections: the server %v of %q is not valid", s.Addr, s.File)
		}
	}
	for _, r := range c.Routes {
		if !r.Prefix.IsValid() {
			return errors.New("connections: a route is not valid")
		}
	}
	if err := checkRouting(c.Routing); err != nil {
		return err
	}
	if c.Ephemeral.To < c.Ephemeral.From {
		return errors.New("connections: the range of ephemeral ports is upside down")
	}
	for name, set := range c.Sets {
		if set == nil {
			return fmt.Errorf("connections: the set %q is empty", name)
		}
		for _, e := range set.Prefixes {
			if set.Type != "bitmap:port" && !e.Prefix.IsValid() {
				return fmt.Errorf("connections: an entry of the set %q is not valid", name)
			}
		}
	}
	if int64(len(c.Flows)) > c.Total {
		return errors.New("connections: more flows than there are in total")
	}
	return nil
}

func checkRouting(r *host.Routing) error {
	if r == nil {
		return nil
	}
	for _, x := range r.Rules {
		if x.Family != host.IPv4 && x.Family != host.IPv6 || x.From.IsValid() && x.From.Addr().Is4() != (x.Family == host.IPv4) || x.To.IsValid() && x.To.Addr().Is4() != (x.Family == host.IPv4) {
			return fmt.Errorf("connections: the routing rule %d is of no family, or of two", x.Priority)
		}
	}
	for _, x := range r.Routes {
		if !x.Prefix.IsValid() {
			return errors.New("connections: a route of a table is not valid")
		}
	}
	return nil
}
