package planfile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// checkDesired holds a desired state to what schema can yield, because it goes
// on to become rules and file content.
func checkDesired(d declared.Desired) error {
	if !slices.Contains([]declared.Mode{declared.Unmanaged, declared.Disabled, declared.Notrack, declared.Tuned}, d.Mode) {
		return fmt.Errorf("mode %q", d.Mode)
	}
	if p := d.StatefulRules; p != "" && !slices.Contains(declared.StatefulPolicies, p) {
		return fmt.Errorf("stateful_rules %q", p)
	}
	if f := d.Firewall; f != "" && f != declared.IPTables && f != declared.NFTables {
		return fmt.Errorf("firewall %q", f)
	}
	if r := d.Reload; r != "" && r != declared.ReloadLive && r != declared.ReloadRestart {
		return fmt.Errorf("reload %q", r)
	}
	if d.Mode == declared.Tuned && d.Max == nil {
		return errors.New("mode tuned without max")
	}
	for _, s := range []*declared.Setting{d.Max, d.Hashsize} {
		if s != nil && (s.Value < 1 || s.Value > 1<<31-1) {
			return fmt.Errorf("value %d: it should be 1 to 2147483647", s.Value)
		}
	}
	for _, t := range d.Timeouts {
		if _, ok := declared.TimeoutKeys[t.Name]; !ok || t.Seconds < 0 || t.Seconds > 1<<32-1 {
			return fmt.Errorf("timeout %q = %d", t.Name, t.Seconds)
		}
	}
	if err := checkFamilies(d.Families); err != nil {
		return err
	}
	for _, t := range slices.Concat(d.Notrack, d.Accept) {
		if err := checkTraffic(t); err != nil {
			return fmt.Errorf("traffic %q: %w", t.Name, err)
		}
	}
	paths := slices.Concat([]string{d.Files.Sysctl, d.Files.Modprobe, d.Files.ModulesLoad, d.Files.RulesV4, d.Files.RulesV6}, d.InitScripts)
	for _, p := range paths {
		if p != "" && (!path.IsAbs(p) || strings.ContainsAny(p, "\x00\n")) {
			return fmt.Errorf("path %q", p)
		}
	}
	return nil
}

func checkFamilies(families []host.Family) error {
	for _, f := range families {
		if !slices.Contains(host.Families, f) {
			return fmt.Errorf("family %q", f)
		}
	}
	return nil
}

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	digits = "0123456789"
	labels = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + digits + "._-"
)

func checkTraffic(t declared.Traffic) error {
	only := func(s, chars string) bool { return strings.Trim(s, chars) == "" }
	switch {
	case t.Name == "" || len(t.Name) > 64 || !only(t.Name, labels):
		return errors.New("its name is not a label")
	case !only(t.Protocol, labels):
		return fmt.Errorf("protocol %q", t.Protocol)
	case len(t.Interface) > 15 || strings.ContainsFunc(t.Interface, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'\\!/", r) }):
		return fmt.Errorf("interface %q", t.Interface)
	case !slices.Contains([]declared.Direction{declared.Both, declared.In, declared.Out, declared.Forward}, t.Direction):
		return fmt.Errorf("direction %q", t.Direction)
	case !slices.Contains([]declared.Initiator{declared.EitherSide, declared.LocalSide, declared.RemoteSide}, t.Initiator):
		return fmt.Errorf("initiator %q", t.Initiator)
	case len(t.Families) == 0:
		return errors.New("no family")
	}
	for _, p := range slices.Concat(t.Local, t.Remote) {
		if !p.IsValid() {
			return errors.New("an address is not valid")
		}
	}
	for _, r := range slices.Concat(t.LocalPorts, t.RemotePorts) {
		if r.From > r.To {
			return fmt.Errorf("ports %d-%d", r.From, r.To)
		}
	}
	return checkFamilies(t.Families)
}
