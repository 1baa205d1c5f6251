package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
)

// Fact is one thing that a plan was made from.
type Fact struct {
	Address string // "iptables.ipv4.filter", "file./etc/sysctl.conf", "host.boot_id"
	Digest  string // of its value: hex, equal for equal values
}

// Facts lists what a plan depends on, sorted by address. What changes by
// itself is no fact: packet counters, the time in a comment of iptables-save,
// the number of tracked connections, how often a module is in use.
func (s *Snapshot) Facts() []Fact {
	var facts []Fact
	add := func(address string, values ...string) {
		h := sha256.New()
		for _, v := range values {
			fmt.Fprintf(h, "%d:%s", len(v), v)
		}
		facts = append(facts, Fact{address, hex.EncodeToString(h.Sum(nil))})
	}
	h := s.Host
	add("host.name", h.Name)
	add("host.machine_id", h.MachineID)
	add("host.boot_id", h.BootID)
	add("host.kernel", h.Kernel)
	add("host.cpus", fmt.Sprint(h.CPUs))
	add("host.memory", fmt.Sprint(h.Memory))
	add("host.page_size", fmt.Sprint(h.PageSize, h.PointerSize))

	c := s.Conntrack
	add("conntrack.kind", string(c.Kind))
	add("conntrack.loaded", fmt.Sprint(c.Loaded))
	add("conntrack.hashsize", fmt.Sprint(c.Hashsize))
	add("conntrack.initial_netns", fmt.Sprint(c.InitialNetns))
	add("conntrack.max", fmt.Sprint(c.Max))
	add("conntrack.hashsize_fixed", fmt.Sprint(c.HashsizeFixed))

	tracks := conntrackModules(s.Modules)
	for _, m := range s.Modules {
		if tracks[m.Name] {
			add("module."+m.Name, strings.Join(m.By, ","))
		}
	}
	if k := s.Loading; k != nil {
		add("module", append([]string{fmt.Sprint(k.Disabled, k.Tree)}, k.Usable...)...)
	}
	for key, v := range s.Sysctls {
		if key != "net.netfilter.nf_conntrack_count" {
			add("sysctl."+key, v.Value, fmt.Sprint(v.Writable))
		}
	}
	s.kernelFacts(add)
	for _, r := range s.Rules {
		prefix := fmt.Sprintf("iptables.%s.", r.Family)
		if !r.Primary {
			prefix += string(r.Backend) + "."
		}
		add(prefix+"backend", append([]string{string(r.Backend), fmt.Sprint(r.Primary)}, r.Incompatible...)...)
		for name, lines := range tables(r.Text) {
			add(prefix+name, lines)
		}
	}
	if b := s.Boot; b != nil {
		add("boot.init", b.Init)
		add("boot.services", b.Services...)
		add("boot.cmdline", b.Cmdline...)
		if len(b.Restorers) > 0 {
			var values []string
			for _, r := range b.Restorers {
				values = append(values, r.By, r.At, string(r.Does), string(r.Family), r.File)
			}
			add("boot.restorers", values...)
		}
		add("boot.nftables", b.NFTables...)
	}
	s.holderFacts(add)
	for _, f := range s.Files {
		values := []string{string(f.Kind), f.As, fmt.Sprint(f.File.Exists, f.File.Mode, f.File.UID, f.File.GID), f.File.Target, f.File.Content}
		for _, k := range slices.Sorted(maps.Keys(f.File.Xattrs)) {
			values = append(values, k, f.File.Xattrs[k])
		}
		add("file."+f.File.Path, values...)
	}
	slices.SortFunc(facts, func(a, b Fact) int {
		return strings.Compare(a.Address+"\x00"+a.Digest, b.Address+"\x00"+b.Digest)
	})
	return facts
}

// kernelFacts are those of the installed kernels, and of the host's addresses.
func (s *Snapshot) kernelFacts(add func(address string, values ...string)) {
	for _, t := range s.Trees {
		add("module."+t.Release, fmt.Sprint(t))
	}
	if s.Addresses != nil {
		add("host.addresses", fmt.Sprint(s.Addresses))
	}
}

// Declared reports whether a configuration can read the fact at the address,
// through host.*, so that it may declare something else where the fact differs.
func Declared(address string) bool {
	switch address {
	case "host.name", "host.machine_id", "host.kernel", "host.cpus", "host.memory", "conntrack.max", "conntrack.hashsize":
		return true
	}
	return false
}

// conntrackModules are connection tracking and what uses it, directly or not.
// No other module matters to a plan, and merely reading rules can load some.
func conntrackModules(loaded []host.Module) map[string]bool {
	tracks := map[string]bool{}
	for _, m := range loaded {
		if modules.IsConntrack(m.Name) {
			tracks[m.Name] = true
		}
	}
	for before := -1; before < len(tracks); {
		before = len(tracks)
		for _, m := range loaded {
			if tracks[m.Name] {
				for _, user := range m.By {
					tracks[user] = true
				}
			}
		}
	}
	return tracks
}

// Compare returns the addresses of the facts that differ, sorted. Empty means
// that a plan from one is the plan from the other.
func Compare(a, b *Snapshot) []string {
	left, right := a.Facts(), b.Facts()
	var diff []string
	for len(left) > 0 || len(right) > 0 {
		switch {
		case len(right) == 0 || len(left) > 0 && left[0].Address < right[0].Address:
			diff, left = append(diff, left[0].Address), left[1:]
		case len(left) == 0 || right[0].Address < left[0].Address:
			diff, right = append(diff, right[0].Address), right[1:]
		default:
			if left[0].Digest != right[0].Digest {
				diff = append(diff, left[0].Address)
			}
			left, right = left[1:], right[1:]
		}
	}
	return slices.Compact(diff)
}

// tables splits what iptables-save printed by table, without comments and
// counters. A table with nothing but empty built-in chains that accept is left
// out: merely listing it makes it appear.
func tables(text string) map[string]string {
	out := map[string]string{}
	name, bare := "", true
	var body strings.Builder
	flush := func() {
		if name != "" && !bare {
			out[name] += body.String()
		}
		name, bare = "", true
		body.Reset()
	}
	for line := range strings.Lines(text) {
		switch line[0] {
		case '#', '\n':
			continue
		case '*':
			flush()
			name = strings.TrimSpace(line[1:])
			continue
		case ':':
			line, _, _ = strings.Cut(line, " [")
			line = strings.TrimSpace(line)
			bare = bare && strings.HasSuffix(line, " ACCEPT")
			body.WriteString(line + "\n")
			continue
		case '[':
			if _, rest, ok := strings.Cut(line, "] "); ok {
				line = rest
			}
		}
		if strings.TrimSpace(line) == "COMMIT" {
			continue
		}
		bare = false
		body.WriteString(line)
	}
	flush()
	return out
}
