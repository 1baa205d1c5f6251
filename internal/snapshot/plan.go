package snapshot

import (
	"cmp"
	"fmt"
	"path"
	"slices"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/providers/initscript"
)

// Plan compares a host with what is declared, and adds what it boots into now
// and after the plan. The latter comes from the very bytes that the plan
// writes, read by the parsers that read the host, so that an edit and its
// forecast cannot disagree.
func Plan(d planner.Desired, l planner.Live) (planner.Plan, error) {
	return foreseen(d, l, planner.Diff(d, l))
}

// Draft is Plan without judging what becomes of connections: see planner.Draft.
func Draft(d planner.Desired, l planner.Live) (planner.Plan, error) {
	return foreseen(d, l, planner.Draft(d, l))
}

func foreseen(d planner.Desired, l planner.Live, p planner.Plan) (planner.Plan, error) {
	after, err := afterPlan(d, l, p)
	if err != nil {
		return planner.Plan{}, err
	}
	return p.Foreseen(d, l, after), nil
}

// afterPlan is the host with the plan's files in place of its own. Everything
// else is as it is.
func afterPlan(d planner.Desired, l planner.Live, p planner.Plan) (planner.Live, error) {
	for _, c := range p.Changes {
		change, ok := c.(*planner.FileChange)
		if !ok {
			continue
		}
		f := change.After
		switch {
		case put(&l.SysctlFiles, sysctlPath, f.Path, func(old planner.SysctlFile) planner.SysctlFile { return parseSysctl(f, old.As) }):
		case put(&l.ModprobeFiles, modprobePath, f.Path, func(old planner.ModprobeFile) planner.ModprobeFile { return parseModprobe(f, old.As) }):
		case put(&l.ModulesLoad, loadPath, f.Path, func(old planner.ModulesLoadFile) planner.ModulesLoadFile { return parseModulesLoad(f, old.As) }):
		case put(&l.InitScripts, func(s planner.InitScript) string { return s.Path }, f.Path, func(planner.InitScript) planner.InitScript { return initscript.Parse(f) }):
		case put(&l.InitConfigs, func(c planner.InitConfig) string { return c.Path }, f.Path, func(planner.InitConfig) planner.InitConfig { return initscript.ParseConfig(f) }):
		case f.Path == planner.SysctlTarget(d, l):
			insert(&l.SysctlFiles, parseSysctl(f, ""), func(s planner.SysctlFile) string { return cmp.Or(s.As, s.Path) })
		case f.Path == cmp.Or(d.Files.Modprobe, planner.DefaultModprobeFile):
			insert(&l.ModprobeFiles, parseModprobe(f, ""), func(m planner.ModprobeFile) string { return cmp.Or(m.As, m.Path) })
		case f.Path == cmp.Or(d.Files.ModulesLoad, planner.DefaultModulesLoadFile):
			insert(&l.ModulesLoad, parseModulesLoad(f, ""), func(m planner.ModulesLoadFile) string { return cmp.Or(m.As, m.Path) })
		default:
			i := slices.IndexFunc(l.SavedRules, func(r planner.Ruleset) bool { return r.File.Path == f.Path })
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
	return l, nil
}

func sysctlPath(s planner.SysctlFile) string     { return s.Path }
func modprobePath(m planner.ModprobeFile) string { return m.Path }
func loadPath(m planner.ModulesLoadFile) string  { return m.Path }

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
