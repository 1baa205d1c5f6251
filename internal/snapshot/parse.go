package snapshot

import (
	"errors"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftconf"
	"github.com/ctplan/ctplan/providers/initscript"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/kmod"
	"github.com/ctplan/ctplan/providers/sysctl"
)

// parseRules parses what iptables-save printed, unless that was done on reading.
func parseRules(r Rules) (host.Ruleset, error) {
	raw := r.read
	raw.Family, raw.Backend, raw.Primary, raw.Text = r.Family, r.Backend, r.Primary, r.Text
	set, err := raw.Ruleset()
	set.Incompatible, set.Version = r.Incompatible, r.Version
	if len(r.Incompatible) > 0 {
		set.Tables = slices.DeleteFunc(slices.Clone(set.Tables), func(t host.Table) bool { return slices.Contains(r.Incompatible, t.Name) })
	}
	return set, err
}

// parseSaved parses a saved rules file. One that cannot be read is for the
// planner to refuse, with its line: the rest of the plan still stands.
func parseSaved(family host.Family, f host.File) (host.Ruleset, error) {
	set, err := iptables.ParseFile(family, f)
	var syntax *iptables.SyntaxError
	if errors.As(err, &syntax) {
		return host.Ruleset{Family: family, File: &f, Refusal: syntax.Problem, RefusalLine: syntax.Line}, nil
	}
	return set, err
}

// parseFile parses f by its kind into l.
func parseFile(f File, l *host.Live) error {
	switch f.Kind {
	case KindSysctl:
		l.SysctlFiles = append(l.SysctlFiles, parseSysctl(f.File, f.As))
	case KindModprobe:
		l.ModprobeFiles = append(l.ModprobeFiles, parseModprobe(f.File, f.As))
	case KindModulesLoad:
		l.ModulesLoad = append(l.ModulesLoad, parseModulesLoad(f.File, f.As))
	case KindInitScript:
		l.InitScripts = append(l.InitScripts, initscript.Parse(f.File))
		l.Scripts = append(l.Scripts, kmod.ParseScript(f.File))
	case KindScript:
		l.Scripts = append(l.Scripts, kmod.ParseScript(f.File))
	case KindInitramfs:
		l.Initramfs = append(l.Initramfs, kmod.ParseModulesLoad(f.File))
	case KindNFTables:
		l.NFTFiles = append(l.NFTFiles, nftconf.Parse(f.File))
	case KindInitConfig:
		l.InitConfigs = append(l.InitConfigs, initscript.ParseConfig(f.File))
	case KindRulesV4, KindRulesV6:
		family := host.IPv4
		if f.Kind == KindRulesV6 {
			family = host.IPv6
		}
		set, err := parseSaved(family, f.File)
		if err != nil {
			return err
		}
		l.SavedRules = append(l.SavedRules, set)
	}
	return nil
}

func parseSysctl(f host.File, as string) host.SysctlFile {
	p := sysctl.Parse(f)
	p.As = as
	return p
}

func parseModprobe(f host.File, as string) host.ModprobeFile {
	p := kmod.ParseModprobe(f)
	p.As = as
	return p
}

func parseModulesLoad(f host.File, as string) host.ModulesLoadFile {
	p := kmod.ParseModulesLoad(f)
	p.As = as
	return p
}
