package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// serviceWords say what a file is about.
var serviceWords = map[string]string{
	host.ServiceDNS: "the name servers of %s", host.ServiceNTP: "the time servers of %s", host.ServiceDHCP: "addresses come by DHCP, says %s", host.ServiceDHCPv6: "addresses come by DHCPv6, says %s",
}

// unanswered are the accept blocks, in words, that let in the answers of servers
// of UDP which the host is configured to ask, and which no block that is declared
// lets in. Only what arrives here is meant: who asks through this host is not known.
func (p *stage) unanswered(chain string) string {
	if p.l.Connections == nil || chain == "OUTPUT" || chain == "FORWARD" {
		return ""
	}
	var out []string
	var order []string
	of := map[string][]host.Server{}
	for _, s := range p.l.Connections.Servers {
		if serviceWords[s.Service] == "" || slices.ContainsFunc(p.d.Accept, func(t declared.Traffic) bool { return letsAnswer(&t, s) }) {
			continue
		}
		if of[s.Service] == nil {
			order = append(order, s.Service)
		}
		of[s.Service] = append(of[s.Service], s)
	}
	for _, service := range order {
		out = append(out, blockFor(service, of[service]))
	}
	return strings.Join(out, ", and ")
}

// blockFor is one of them.
func blockFor(service string, servers []host.Server) string {
	var remote, files []string
	named := false
	for _, s := range servers {
		switch a := fmt.Sprintf("%q", s.Addr); {
		case !s.Addr.IsValid():
			named = true
		case !slices.Contains(remote, a):
			remote = append(remote, a)
		}
		if f := s.File; !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	from := strings.Join(files, ", ")
	text := fmt.Sprintf(`accept %q with protocol = "udp"`, service)
	if !named {
		text += ", remote = [" + strings.Join(remote, ", ") + "]"
	}
	if local := servers[0].LocalPort; local != 0 {
		text += fmt.Sprintf(", local_port = %d", local)
	}
	text += fmt.Sprintf(", remote_port = %d (", servers[0].Port) + fmt.Sprintf(serviceWords[service], from)
	if named && service == host.ServiceNTP {
		text += ", which has names: put their addresses into remote, or anybody may send from that port"
	}
	return text + ")"
}

// letsAnswer is whether an accept block lets the answers of a server in.
func letsAnswer(t *declared.Traffic, s host.Server) bool {
	if t.Protocol != "" && t.Protocol != "udp" || t.Interface == "lo" || t.Direction != declared.Both && t.Direction != declared.In {
		return false
	}
	if len(t.RemotePorts) > 0 && !host.InRanges(t.RemotePorts, s.Port) || len(t.LocalPorts) > 0 && (s.LocalPort == 0 || !host.InRanges(t.LocalPorts, s.LocalPort)) {
		return false
	}
	return len(t.Remote) == 0 || s.Addr.IsValid() && slices.ContainsFunc(t.Remote, func(n netip.Prefix) bool { return n.Contains(s.Addr) })
}
