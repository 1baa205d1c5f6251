package snapshot

import (
	"cmp"
	"fmt"
	"path"
	"slices"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/nftconf"
	"github.com/ctplan/ctplan/providers/initscript"
)

// Plan compares a host with what is declared, and adds what it boots into now
// and after the plan. The latter comes from the very bytes that the plan
// writes, read by the parsers that read the host, so that an edit and its
// forecast cannot disagree.
func Plan(d declared.Desired, l host.Live) (planner.Plan, error) {
	return foreseen(d, l, planner.Diff(d, l))
}

// Draft is Plan without judging what becomes of connections: see planner.Draft.
func Draft(d declared.Desired, l host.Live) (planner.Plan, error) {
	return foreseen(d, l, planner.Draft(d, l))
}

func foreseen(d declared.Desired, l host.Live, p planner.Plan) (planner.Plan, error) {
	after, err := afterPlan(d, l, p)
	if err != nil {
		return planner.Plan{}, err
	}
	return p.Foreseen(d, l, after), nil
}

// afterPlan is the host with the plan's files, and its tables of nftables, in place
// of its own. Everything else is as it is.
func afterPlan(d declared.Desired, l host.Live, p planner.Plan) (host.Live, error) {
	for _, c := range p.Changes {
		if n, ok := c.(*change.NFTChange); ok {
			l.NFT = nftables.Apply(l.NFT, n.Ops)
		}
		change, ok := c.(*change.FileChange)
		if !ok {
			continue
		}
		f := change.After
		switch {
		case put(&l.SysctlFiles, sysctlPath, f.Path, func(old host.SysctlFile) host.SysctlFile { return parseSysctl(f, old.As) }):
		case put(&l.ModprobeFiles, modprobePath, f.Path, func(old host.ModprobeFile) host.ModprobeFile { return parseModprobe(f, old.As) }):
		case put(&l.ModulesLoad, loadPath, f.Path, func(old host.ModulesLoadFile) host.ModulesLoadFile { return parseModulesLoad(f, old.As) }):
		case put(&l.InitScripts, func(s host.InitScript) string { return s.Path }, f.Path, func(host.InitScript) host.InitScript { return initscript.Parse(f) }):
		case put(&l.InitConfigs, func(c host.InitConfig) string { return c.Path }, f.Path, func(host.InitConfig) host.InitConfig { return initscript.ParseConfig(f) }):
		case put(&l.NFTFiles, func(n host.NFTFile) string { return n.Path }, f.Path, func(host.NFTFile) host.NFTFile { return nftconf.Parse(f) }):
		case f.Path == nftconf.OwnPath(l.NFTConf.Mains):
			l.NFTFiles = append(slices.Clone(l.NFTFiles), nftconf.Parse(f))
		case f.Path == etc.SysctlTarget(d, l):
			insert(&l.SysctlFiles, parseSysctl(f, ""), func(s host.SysctlFile) string { return cmp.Or(s.As, s.Path) })
		case f.Path == cmp.Or(d.Files.Modprobe, etc.DefaultModprobeFile):
			insert(&l.ModprobeFiles, parseModprobe(f, ""), func(m host.ModprobeFile) string { return cmp.Or(m.As, m.Path) })
		case f.Path == cmp.Or(d.Files.ModulesLoad, etc.DefaultModulesLoadFile):
			insert(&l.ModulesLoad, parseModulesLoad(f, ""), func(m host.ModulesLoadFile) string { return cmp.Or(m.As, m.Path) })
		default:
			i := slices.IndexFunc(l.SavedRules, func(r host.Ruleset) bool { return r.File.Path == f.Path })
			if i < 0 {
				return l, fmt.Errorf("foreseeing the boot: the plan changes %s, which is no file that boot reads", f.Path)
			}
			set, err := parseSaved(l.SavedRules[i].Family, f)
			if err != nil {
				return l, fmt.Errorf("foreseeing the boot: reading what the plan makes of %s: %w", f.Path, err)
			}
			l.SavedRules = slices.Clone(l.SavedRules)
			l.SavedRules[i] = set
		}
	}
	l.NFTFiles = slices.DeleteFunc(slices.Clone(l.NFTFiles), func(f host.NFTFile) bool { return !f.Exists })
	l.NFTConf = nftconf.Of(l.Boot, l.NFTFiles)
	return l, nil
}

func sysctlPath(s host.SysctlFile) string     { return s.Path }
func modprobePath(m host.ModprobeFile) string { return m.Path }
func loadPath(m host.ModulesLoadFile) string  { return m.Path }

// put replaces the file at path in a list that others share, if it is there.
func put[F any](list *[]F, pathOf func(F) string, path string, parse func(old F) F) bool {
	i := slices.IndexFunc(*list, func(f F) bool { return pathOf(f) == path })
	if i < 0 {
		return false
	}
	*list = slices.Clone(*list)
	(*list)[i] = parse((*list)[i])
	return true
}

// insert adds a new file of a drop-in folder in the order of names.
func insert[F any](list *[]F, f F, nameOf func(F) string) {
	at := slices.IndexFunc(*list, func(o F) bool { return path.Base(nameOf(o)) > path.Base(nameOf(f)) })
	if at < 0 {
		at = len(*list)
	}
	*list = slices.Insert(slices.Clone(*list), at, f)
}
