package cause

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/sizes"
	"github.com/ctplan/ctplan/providers/trace"
)

const (
	keyMax  = "net.netfilter.nf_conntrack_max"
	nameMax = "nf_conntrack_max"
)

// value are the causes of a sysctl that has another value.
func (m *matcher) value(key, value string) (found []Cause) {
	found = append(found, m.sysctlLine(key, value)...)
	for _, s := range m.Trace.Settings {
		if sameKey(s.Key, key) && sameValue(s.Value, value) {
			found = append(found, Cause{
				Kind: Writer, Sure: Likely, Text: fmt.Sprintf("%s sets %s to %s", s.Program, s.Key, s.Value),
				Evidence: append([]trace.Record{s.Record}, m.running(&owner{process: []string{"tuned"}, services: []string{"tuned"}})...),
			})
		}
	}
	n, isNumber := number(value)
	perCore := max(32768*m.Live.Host.CPUs, 131072)
	switch {
	case sameKey(key, keyMax):
		found = append(found, m.kubeProxy(isNumber && n == perCore, fmt.Sprintf("the larger of 131072 and 32768 for each of %d CPUs", m.Live.Host.CPUs))...)
	case strings.HasSuffix(key, "_tcp_timeout_established"):
		found = append(found, m.kubeProxy(n == 86400, "86400 seconds")...)
	case strings.HasSuffix(key, "_tcp_timeout_close_wait"):
		found = append(found, m.kubeProxy(n == 3600, "3600 seconds")...)
	}
	found = append(found, m.reloads()...)
	short := key[strings.LastIndexByte(key, '.')+1:]
	for _, c := range m.Trace.Commands {
		switch {
		case strings.Contains(c.Line, short):
			if setsValue(c) {
				found = append(found, hand(c, ifNamed(c.Line, value)))
			}
		case loadsSysctls(c.Line):
			found = append(found, hand(c, Possible))
		}
	}
	return found
}

// sysctlLine is a line of sysctl.conf or sysctl.d that sets the value that is
// seen: the last one, which is the one that counts at boot.
func (m *matcher) sysctlLine(key, value string) []Cause {
	for _, f := range slices.Backward(m.Live.SysctlFiles) {
		for _, e := range slices.Backward(f.Entries) {
			if !sameKey(e.Key, key) || !sameValue(e.Value, value) {
				continue
			}
			where := fmt.Sprintf("%s:%d", f.Path, e.Line)
			return []Cause{{
				Kind: Setting, Sure: Likely, Text: fmt.Sprintf("%s sets %s to %s", where, e.Key, e.Value),
				Evidence: append([]trace.Record{{Where: where, Text: e.Key + " = " + e.Value}}, m.appliers("systemd-sysctl", "procps")...),
			}}
		}
	}
	return nil
}

// appliers are the services that apply files, if they were started since.
func (m *matcher) appliers(names ...string) (out []trace.Record) {
	for _, s := range m.Trace.Services {
		if slices.Contains(names, s.Name) {
			out = append(out, s.Record)
		}
	}
	return out[max(0, len(out)-1):]
}

// kubeProxy is kube-proxy, which sets sizes and timeouts at each start
// (conntrack.maxPerCore, min, tcpEstablishedTimeout, tcpCloseWaitTimeout).
func (m *matcher) kubeProxy(its bool, what string) []Cause {
	for _, p := range m.Trace.Processes {
		if p.Name != "kube-proxy" {
			continue
		}
		if its {
			return []Cause{{Kind: Writer, Sure: Likely, Text: "kube-proxy sets this value when it starts: " + what, Evidence: []trace.Record{p.Record}}}
		}
		if p.Time.After(m.since) {
			return []Cause{{Kind: Writer, Sure: Possible, Text: "kube-proxy sets this key when it starts, to what its configuration says", Evidence: []trace.Record{p.Record}}}
		}
	}
	return nil
}

// reloads are restarts of the packet filter's service, which unload the module
// and so reset what it knows.
func (m *matcher) reloads() (found []Cause) {
	for _, name := range []string{"iptables", "ip6tables"} {
		if happened := m.happened(name); len(happened) > 0 {
			found = append(found, Cause{
				Kind: Service, Sure: Likely,
				Text:     fmt.Sprintf("the service %s was %s since the last apply: it loads nf_conntrack anew, which resets its values", name, happened[len(happened)-1].Did),
				Evidence: records(happened),
			})
		}
	}
	return found
}

// hashsize are the causes of another number of buckets.
func (m *matcher) hashsize(c *change.HashsizeChange) (found []Cause) {
	for _, f := range slices.Backward(m.Live.ModprobeFiles) {
		for _, e := range f.Entries {
			if e.Command != "options" || e.Module != "nf_conntrack" {
				continue
			}
			for _, a := range e.Args {
				v, ok := strings.CutPrefix(a.Text, "hashsize=")
				n, isNumber := number(strings.Trim(v, `"`))
				if ok && isNumber && sizes.RoundBuckets(n, m.Live.Host.PageSize, m.Live.Host.PointerSize) == c.Before {
					where := fmt.Sprintf("%s:%d", f.Path, e.Line)
					found = append(found, Cause{Kind: Setting, Sure: Likely, Text: where + " sets hashsize=" + v + " when the module is loaded", Evidence: []trace.Record{{Where: where, Text: a.Text}}})
				}
			}
		}
	}
	perCore := max(32768*m.Live.Host.CPUs, 131072)
	found = append(found, m.kubeProxy(c.Before == sizes.RoundBuckets(perCore/4, m.Live.Host.PageSize, m.Live.Host.PointerSize), "a quarter of its maximum")...)
	found = append(found, m.reloads()...)
	for _, cmd := range m.Trace.Commands {
		if strings.Contains(cmd.Line, "nf_conntrack/parameters/hashsize") || strings.Contains(cmd.Line, "nf_conntrack_buckets") {
			if setsValue(cmd) {
				found = append(found, hand(cmd, Likely)) // the kernel rounds, so the number need not be the same
			}
		}
	}
	return found
}

// module are the causes of a module that is loaded, or is not.
func (m *matcher) module(c *change.ModuleChange) (found []Cause) {
	if !c.Load {
		for _, f := range m.Live.ModulesLoad {
			for _, e := range f.Entries {
				if e.Module == c.Module && len(m.reboot(Likely)) > 0 {
					where := fmt.Sprintf("%s:%d", f.Path, e.Line)
					found = append(found, Cause{Kind: Setting, Sure: Likely, Text: where + " has boot load it", Evidence: []trace.Record{{Where: where, Text: e.Module}}})
				}
			}
		}
		found = append(found, m.needers()...)
		for _, p := range m.Trace.Processes {
			if p.Time.After(m.since) && (p.Name == "dockerd" || p.Name == "kube-proxy" || p.Name == "libvirtd" || p.Name == "virtnetworkd") {
				found = append(found, Cause{Kind: Writer, Sure: Possible, Text: p.Name + " loads it for its rules when it starts", Evidence: []trace.Record{p.Record}})
			}
		}
	}
	found = append(found, m.reloads()...)
	for _, cmd := range m.Trace.Commands {
		for _, p := range programs(cmd.Line) {
			switch p[0] {
			case "modprobe", "insmod", "rmmod":
				if slices.ContainsFunc(p[1:], func(a string) bool { return strings.Contains(strings.ReplaceAll(a, "-", "_"), c.Module) }) {
					found = append(found, hand(cmd, Likely))
				}
			case "iptables", "ip6tables":
				if !c.Load && (tableOf(p) == "nat" || slices.Contains(p, "state") || slices.Contains(p, "conntrack")) {
					found = append(found, hand(cmd, Likely))
				}
			}
		}
	}
	return found
}

// needers are rules of the same drift that had the kernel load the module.
func (m *matcher) needers() []Cause {
	for _, c := range m.Changes {
		r, ok := c.(*change.RulesChange)
		if !ok {
			continue
		}
		for _, line := range minus(r.Before, r.After) {
			if r.Table == "nat" || strings.Contains(line, "-m state ") || strings.Contains(line, "-m conntrack ") || strings.Contains(line, "--notrack") {
				return []Cause{{Kind: Dependency, Sure: Likely, Text: "a rule that needs it had the kernel load it", Evidence: []trace.Record{{Where: r.M.Address, Text: line}}}}
			}
		}
	}
	return nil
}

// setsValue reports whether a command that names a key can have set it.
func setsValue(c trace.Command) bool {
	if c.Via == "ansible" {
		return true
	}
	for _, p := range programs(c.Line) {
		switch p[0] {
		case "cat", "less", "grep", "head", "tail", "stat", "ls", "watch", "wc":
			continue
		case "sysctl":
			if !slices.ContainsFunc(p[1:], func(a string) bool { return strings.Contains(a, "=") }) {
				continue
			}
		}
		return true
	}
	return strings.Contains(c.Line, ">")
}

// ifNamed is how sure it is that a command set a value: it may have set another.
func ifNamed(line, value string) Certainty {
	if strings.Contains(line, strings.TrimSpace(value)) {
		return Likely
	}
	return Possible
}

// loadsSysctls reports whether a command applies sysctl files.
func loadsSysctls(line string) bool {
	for _, p := range programs(line) {
		switch p[0] {
		case "sysctl":
			if slices.ContainsFunc(p[1:], func(a string) bool {
				return a == "--system" || strings.HasPrefix(a, "-p") || strings.HasPrefix(a, "--load") || a == "-f"
			}) {
				return true
			}
		case "tuned-adm":
			if slices.Contains(p, "profile") {
				return true
			}
		}
	}
	return false
}

// sameKey compares two names of a sysctl. The maximum has two.
func sameKey(a, b string) bool {
	whole := func(k string) string {
		k = strings.ReplaceAll(k, "/", ".")
		if k == "net."+nameMax {
			return keyMax
		}
		return k
	}
	return whole(a) == whole(b)
}

func sameValue(a, b string) bool {
	return cmp.Compare(strings.Join(strings.Fields(a), " "), strings.Join(strings.Fields(b), " ")) == 0
}
