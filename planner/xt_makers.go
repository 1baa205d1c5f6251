package planner

import (
	"slices"
	"strings"
)

// makers are the programs that are known by the names of their chains.
var makers = []struct{ prefix, who string }{
	{"DOCKER", "docker"}, {"KUBE-", "kube-proxy"}, {"CNI-", "a CNI plugin"}, {"cali-", "calico"}, {"LIBVIRT_", "libvirt"}, {"NETAVARK", "podman"},
	{"FLANNEL-", "flannel"}, {"CILIUM_", "cilium"}, {"ufw-", "ufw"}, {"ufw6-", "ufw"}, {"f2b-", "fail2ban"},
}

// madeBy names who writes rules of this shape, so that the operator knows
// that they come back.
func madeBy(rule *Rule) string {
	if who := makerOf(append([]string{rule.Chain}, rule.Words...)...); who != "" {
		return " (made by " + who + ")"
	}
	return ""
}

// makerOf is the program that gives such names to chains; "" where none is
// known by them.
func makerOf(names ...string) string {
	for _, m := range makers {
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, m.prefix) }) {
			return m.who
		}
	}
	return ""
}
