package iptables

import (
	"os"
	"slices"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// SavedPath is a rules file that boot loads, as the host sees it.
type SavedPath struct {
	Family host.Family
	Path   string
}

// SavedPaths lists the rules files of a host: the ones that the HCL names,
// whether they exist or not, else those that exist under root of the files of
// distributions and of what a restorer loads whole.
func SavedPaths(root string, files declared.Files, restorers []host.Restorer) []SavedPath {
	var found []SavedPath
	for _, family := range host.Families {
		named := files.RulesV4
		if family == host.IPv6 {
			named = files.RulesV6
		}
		if named != "" {
			found = append(found, SavedPath{family, named})
			continue
		}
		var candidates []string
		for _, f := range etc.SavedFiles {
			if f.Family == family {
				candidates = append(candidates, f.Path)
			}
		}
		for _, r := range restorers {
			if r.Family == family && r.Does == host.DoRestore && r.File != "" && !slices.Contains(candidates, r.File) {
				candidates = append(candidates, r.File)
			}
		}
		for _, path := range candidates {
			if info, err := os.Stat(root + path); err == nil && info.Mode().IsRegular() {
				found = append(found, SavedPath{family, path})
			}
		}
	}
	return found
}
