package kmod

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// disabledFile is 1 where no module comes or goes until the next boot
// (Documentation/admin-guide/sysctl/kernel.rst).
const disabledFile = "/proc/sys/kernel/modules_disabled"

// ReadLoading tells which of the named modules the kernel under root has, or can
// load. It is nil on a kernel without modules, and on one with netfilter built in
// of which no file says what else is: there nothing is known to lack. nftables
// is whether nf_tables answers.
func ReadLoading(root string, names []string, nftables bool) *host.Loading {
	modules, err := ReadModules(root)
	if err != nil || modules == nil {
		return nil
	}
	l := &host.Loading{Tree: hasTree(root), Usable: []string{}}
	n, err := readNumber(root, disabledFile)
	l.Disabled = err == nil && n == 1
	there := registered(root)
	if nftables {
		there["nf_tables"] = true
	}
	modular := len(there) == 0 // or else what is there would be among the modules
	for _, m := range modules {
		there[m.Name] = true
		modular = modular || slices.Contains([]string{"x_tables", "ip_tables", "nf_tables", "nfnetlink", "nf_conntrack"}, m.Name)
	}
	if !l.Tree && !modular {
		return nil
	}
	builtin, loadable := listing(root, "modules.builtin"), listing(root, "modules.dep")
	for _, name := range names {
		if there[name] || builtin[name] || loadable[name] && !l.Disabled {
			l.Usable = append(l.Usable, name)
		}
	}
	slices.Sort(l.Usable)
	return l
}

// registered are the modules whose matches, targets and tables iptables-legacy
// can use at this moment, built in or not (net/netfilter/x_tables.c).
func registered(root string) map[string]bool {
	there := map[string]bool{}
	for _, family := range []string{"ip", "ip6"} {
		for _, list := range []string{"names", "matches", "targets"} {
			text, err := os.ReadFile(filepath.Join(root, "/proc/thread-self/net", family+"_tables_"+list))
			if err != nil {
				continue
			}
			there["x_tables"], there[family+"_tables"] = true, true
			for name := range strings.FieldsSeq(string(text)) {
				switch {
				case list == "names":
					there[family+"table_"+name] = true
				case name == "tcp" || name == "udp" || name == "udplite":
					there["xt_tcpudp"] = true
				case name == "NOTRACK":
					there["xt_CT"] = true
				default:
					there["xt_"+name], there[family+"t_"+name] = true, true
				}
			}
		}
	}
	return there
}

// listing are the names of the modules in a file of the running kernel's tree.
func listing(root, file string) map[string]bool {
	names := map[string]bool{}
	folder, err := tree(root)
	if err != nil {
		return names
	}
	text, err := os.ReadFile(filepath.Join(folder, file))
	if err != nil {
		return names
	}
	for line := range strings.Lines(string(text)) {
		if name := moduleOf(line); name != "" {
			names[name] = true
		}
	}
	return names
}

// moduleOf is the name of the module that a line of modules.builtin or
// modules.dep is about.
func moduleOf(line string) string {
	file, _, _ := strings.Cut(strings.TrimRight(line, "\n"), ":")
	name, _, ok := strings.Cut(file[strings.LastIndexByte(file, '/')+1:], ".ko")
	if !ok {
		return ""
	}
	return underscores(name)
}
