package xtables

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/words"
)

// workOf are the matches and targets that have tracking do more than tell
// states, by what allow_risk calls that (net/netfilter/xt_*.c).
var workOf = map[string]declared.Risk{
	"-m connlimit": declared.RiskConnectionLimits, "-m connbytes": declared.RiskConnectionBytes,
	"-m connmark": declared.RiskConnectionMarks, "-m connlabel": declared.RiskConnectionMarks, "CONNMARK": declared.RiskConnectionMarks, "CONNSECMARK": declared.RiskConnectionMarks,
	"-m cluster": declared.RiskClusters, "CLUSTERIP": declared.RiskClusters, "-m ipvs": declared.RiskIPVS,
	"SYNPROXY": declared.RiskSYNProxy, "FLOWOFFLOAD": declared.RiskFlowtables,
}

// templateWork is the same of the options of CT.
var templateWork = map[string]declared.Risk{
	"--timeout": declared.RiskRuleTimeouts,
	"--zone":    declared.RiskZones, "--zone-orig": declared.RiskZones, "--zone-reply": declared.RiskZones,
}

// WorkOf is what a rule has connection tracking do that nothing else can, beside
// telling states and translating addresses; "" where it does not.
func WorkOf(s Spec) declared.Risk {
	if r := workOf[s.Target]; r != "" {
		return r
	}
	if marksByConnection(s) {
		return declared.RiskConnectionMarks
	}
	if s.Target == "CT" {
		for _, o := range s.TargetOptions {
			if r := templateWork[o.Name]; r != "" {
				return r
			}
			if o.Name == "--helper" && len(o.Args) == 1 && !KernelHelper(o.Args[0]) {
				return declared.RiskRelated
			}
		}
	}
	if i := slices.IndexFunc(s.Modules, func(m string) bool { return workOf["-m "+m] != "" }); i >= 0 {
		return workOf["-m "+s.Modules[i]]
	}
	return ""
}

// marksByConnection is whether a rule marks packets by the addresses of their
// connection, and not those that are without (net/netfilter/xt_HMARK.c).
func marksByConnection(s Spec) bool {
	return s.Target == "HMARK" && slices.ContainsFunc(s.TargetOptions, func(o Option) bool {
		return o.Name == "--hmark-tuple" && len(o.Args) == 1 && slices.Contains(strings.Split(o.Args[0], ","), "ct")
	})
}

// kernelHelpers are the helpers that the kernel has, as rules name them
// (net/netfilter/nf_conntrack_*.c).
var kernelHelpers = words.Set("ftp", "tftp", "sip", "irc", "RAS", "Q.931", "H.245", "pptp", "amanda", "sane", "netbios-ns", "snmp")

// KernelHelper is whether the kernel itself has the helper; others are programs.
func KernelHelper(name string) bool { return kernelHelpers[name] }
