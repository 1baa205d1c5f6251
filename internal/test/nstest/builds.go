package nstest

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// buildsEnv names a folder of builds of iptables, a folder each, with their
// xtables-multi, xtables-legacy-multi or xtables-nft-multi in it. Tests then run
// on those too.
const buildsEnv = "CTPLAN_IPTABLES_BUILDS"

// Build is a release of iptables that a test can use.
type Build struct {
	Name    string
	Backend host.Backend

	multi   string // the program, or what a stand-in stands on
	version string // of a stand-in; "" of a build
	lacks   string // what a stand-in cannot do
}

// Builds are releases of iptables as hosts have them: stand-ins for older ones,
// which do what the machine's own does but for what theirs could not, and the
// builds in the folder that CTPLAN_IPTABLES_BUILDS names.
func Builds(t testing.TB) []Build {
	t.Helper()
	builds := []Build{
		{"like-1.4.21", host.Legacy, "/usr/sbin/xtables-legacy-multi", "1.4.21", "wait"},
		{"like-1.8.2-nft", host.NFT, "/usr/sbin/xtables-nft-multi", "1.8.2", "own"},
		{"like-1.8.4-nft", host.NFT, "/usr/sbin/xtables-nft-multi", "1.8.4", "chains,own"},
	}
	dir := os.Getenv(buildsEnv)
	if dir == "" {
		return builds
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", "xtables*multi"))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: no build in %s, such as 1.8.4/xtables-nft-multi (%v)", buildsEnv, dir, err)
	}
	slices.Sort(found)
	for _, multi := range found {
		b := Build{Name: filepath.Base(filepath.Dir(multi)), Backend: host.Legacy, multi: multi}
		if strings.Contains(filepath.Base(multi), "nft") {
			b.Backend = host.NFT
		}
		builds = append(builds, b)
	}
	return builds
}

//go:embed standin/iptables
var standIn string

// UseBuild is Use for a build.
func (ns *NS) UseBuild(b Build) {
	ns.t.Helper()
	if b.version == "" {
		ns.use(b.multi)
		return
	}
	program := filepath.Join(ns.t.TempDir(), "iptables")
	head := fmt.Sprintf("#!/bin/bash\nmulti=%s version=%s lacks=%s\n", b.multi, b.version, b.lacks)
	if err := os.WriteFile(program, []byte(head+standIn), 0o755); err != nil {
		ns.t.Fatal(err)
	}
	ns.use(program)
}
