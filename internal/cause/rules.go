package cause

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/trace"
)

// owner is a program that makes chains of its own.
type owner struct {
	name     string
	kind     Kind
	prefixes []string // of the names of its chains
	process  []string // by which it runs
	services []string
}

var owners = []owner{
	{"ufw", Firewall, []string{"ufw-", "ufw6-"}, nil, []string{"ufw"}},
	{"firewalld", Firewall, []string{"INPUT_ZONES", "INPUT_direct", "FORWARD_direct", "FORWARD_IN_ZONES", "FORWARD_OUT_ZONES", "OUTPUT_direct", "PREROUTING_ZONES", "PREROUTING_direct", "POSTROUTING_ZONES", "POSTROUTING_direct"}, []string{"firewalld"}, []string{"firewalld"}},
	{"kube-proxy", Writer, []string{"KUBE-"}, []string{"kube-proxy"}, []string{"kube-proxy"}},
	{"Docker", Writer, []string{"DOCKER"}, []string{"dockerd"}, []string{"docker"}},
	{"fail2ban", Writer, []string{"f2b-", "fail2ban-"}, []string{"fail2ban-server"}, []string{"fail2ban"}},
	{"libvirt", Writer, []string{"LIBVIRT_"}, []string{"libvirtd", "virtnetworkd"}, []string{"libvirtd"}},
	{"Calico", Writer, []string{"cali-", "felix-"}, []string{"calico-node"}, nil},
	{"Cilium", Writer, []string{"CILIUM_", "OLD_CILIUM_"}, []string{"cilium-agent"}, nil},
	{"flannel", Writer, []string{"FLANNEL-"}, []string{"flanneld"}, nil},
	{"a CNI plugin", Writer, []string{"CNI-", "NETAVARK"}, nil, nil},
	{"Tailscale", Writer, []string{"ts-"}, []string{"tailscaled"}, nil},
}

// ofChain is who makes a chain; nil: nobody that is known.
func ofChain(name string) *owner {
	i := slices.IndexFunc(owners, func(o owner) bool {
		return slices.ContainsFunc(o.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	})
	if i < 0 {
		return nil
	}
	return &owners[i]
}

// ofRule is who makes a rule, by the chain it stands in or goes to.
func ofRule(line string) *owner {
	words := strings.Fields(line)
	for i, w := range words {
		if (w == "-A" || w == "-j" || w == "-g") && i+1 < len(words) {
			if o := ofChain(words[i+1]); o != nil {
				return o
			}
		}
	}
	return nil
}

// rules are the causes of a table that differs.
func (m *matcher) rules(c *change.RulesChange) (found []Cause) {
	where := c.M.Address
	extra := minus(c.Before, c.After)
	missing := minus(c.After, c.Before)
	var seen []*owner
	for _, line := range extra {
		o := ofRule(line)
		if o == nil || slices.Contains(seen, o) {
			continue
		}
		seen = append(seen, o)
		found = append(found, Cause{
			Kind: o.kind, Sure: Likely, Text: fmt.Sprintf("%s made rules, in chains that are its own", o.name),
			Evidence: append([]trace.Record{{Where: where, Text: line}}, m.running(o)...),
		})
	}
	if len(missing) > 0 {
		found = append(found, m.restarts(c, seen)...)
	}
	chains := map[string]bool{}
	for _, l := range slices.Concat(extra, missing) {
		if words := strings.Fields(l); len(words) > 1 {
			chains[words[1]] = true
		}
	}
	for _, cmd := range m.Trace.Commands {
		if writesRules(cmd.Line, c.Family, c.Table, chains) {
			found = append(found, hand(cmd, Likely))
		}
	}
	return found
}

// minus are the lines that other lacks, without the declarations of chains.
func minus(lines, other []string) (only []string) {
	have := make(map[string]bool, len(other))
	for _, l := range other {
		have[l] = true
	}
	for _, l := range lines {
		if !have[l] && !strings.HasPrefix(l, ":") {
			only = append(only, l)
		}
	}
	return only
}

// running is what shows that an owner is at work.
func (m *matcher) running(o *owner) (records []trace.Record) {
	for _, p := range m.Trace.Processes {
		if slices.Contains(o.process, p.Name) {
			records = append(records, p.Record)
		}
	}
	for _, s := range m.Trace.Services {
		if slices.Contains(o.services, s.Name) {
			records = append(records, s.Record)
		}
	}
	return records[:min(len(records), 2)]
}

// replaces are the services that take away rules which are not in their own
// files, for the families named; nil is both.
var replaces = map[string][]host.Family{
	"iptables": {host.IPv4}, "ip6tables": {host.IPv6}, "netfilter-persistent": nil, "nftables": nil,
	"ufw": nil, "firewalld": nil, "shorewall": nil, "ferm": nil,
}

// restarts are services that brought their own rules in place of what stood
// there. One that is named by its chains already is left out.
func (m *matcher) restarts(c *change.RulesChange, seen []*owner) (found []Cause) {
	// Its chains are there, so it has a hand in this table.
	present := map[string]bool{}
	for _, l := range c.Before {
		if name, _, ok := strings.Cut(strings.TrimPrefix(l, ":"), " "); ok && l[0] == ':' {
			if o := ofChain(name); o != nil && o.kind == Firewall {
				present[o.name] = true
			}
		}
	}
	for _, name := range trace.Services {
		families, ok := replaces[name]
		if !ok || families != nil && !slices.Contains(families, c.Family) {
			continue
		}
		if name == "nftables" && c.Backend == host.Legacy {
			continue
		}
		if slices.ContainsFunc(seen, func(o *owner) bool { return slices.Contains(o.services, name) }) {
			continue
		}
		happened := m.happened(name)
		if len(happened) == 0 {
			continue
		}
		kind, sure, text := Service, Likely, "the service %s was %s since the last apply, and brought its own rules"
		if name == "ufw" || name == "firewalld" {
			kind, text = Firewall, "%s was %s since the last apply, and brought its own rules"
			if !present[name] {
				sure = Possible
			}
		}
		last := happened[len(happened)-1]
		did := last.Did
		if did == "ran" {
			did = "run or reloaded"
		}
		found = append(found, Cause{Kind: kind, Sure: sure, Text: fmt.Sprintf(text, name, did), Evidence: records(happened)})
	}
	return found
}

// happened is what became of a service, oldest first.
func (m *matcher) happened(name string) (list []trace.Service) {
	for _, s := range m.Trace.Services {
		if s.Name == name && s.Did != "stopped" || s.Name == name && name != "ufw" {
			list = append(list, s)
		}
	}
	slices.SortStableFunc(list, func(a, b trace.Service) int { return a.Time.Compare(b.Time) })
	return list
}

// records are the newest two.
func records(list []trace.Service) (out []trace.Record) {
	for _, s := range list[max(0, len(list)-2):] {
		out = append(out, s.Record)
	}
	return out
}
