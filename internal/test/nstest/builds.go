package nstest

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// buildsEnv names folders of builds of iptables, as PATH names folders: in each, a
// folder for each build, with its xtables-multi, xtables-legacy-multi or
// xtables-nft-multi in it.
const buildsEnv = "CTPLAN_IPTABLES_BUILDS"

// Build is a release of iptables that a test can use.
type Build struct {
	Name    string // such as 1.8.4-nft; releases before 1.8 have one backend
	Backend host.Backend

	multi   string // the program, or what a stand-in stands on
	version string // of a stand-in; "" of a build
	lacks   string // what a stand-in cannot do
}

// StandIns stand in for releases of iptables that could not do what later ones
// can: they do what the machine's own does but for that.
func StandIns() []Build {
	return []Build{
		{"1.4.21", host.Legacy, "/usr/sbin/xtables-legacy-multi", "1.4.21", "wait"},
		{"1.6.1", host.Legacy, "/usr/sbin/xtables-legacy-multi", "1.6.1", "wait"},
		{"1.8.2-nft", host.NFT, "/usr/sbin/xtables-nft-multi", "1.8.2", "own"},
		{"1.8.4-nft", host.NFT, "/usr/sbin/xtables-nft-multi", "1.8.4", "chains,own"},
	}
}

// Own is the machine's own release.
func Own(b host.Backend) Build {
	return Build{Name: "own-" + string(b), Backend: b, multi: "/usr/sbin/xtables-" + string(b) + "-multi"}
}

// StandIn stands in for any release: one of StandIns, or the machine's own, which
// says that it is that one.
func StandIn(b host.Backend, version string) Build {
	for _, s := range StandIns() {
		if s.Backend == b && s.version == version {
			return s
		}
	}
	own := Own(b)
	own.version = version
	return own
}

// Builds are releases of iptables as hosts have them: the builds in the folders
// that CTPLAN_IPTABLES_BUILDS names, and a stand-in for each that is not there.
// Under CI a folder that is not there fails the test.
func Builds(t testing.TB) []Build {
	t.Helper()
	var builds []Build
	for _, dir := range filepath.SplitList(os.Getenv(buildsEnv)) {
		found, err := filepath.Glob(filepath.Join(dir, "*", "xtables*multi"))
		if err != nil || len(found) == 0 {
			why := fmt.Sprintf("%s: no build in %q, such as 1.8.4-nft/xtables-nft-multi (%v)", buildsEnv, dir, err)
			if _, err := os.Stat(dir); err == nil || os.Getenv("CI") == "true" {
				t.Fatal(why)
			}
			t.Log(why)
		}
		for _, multi := range found {
			b := Build{Name: filepath.Base(filepath.Dir(multi)), Backend: host.Legacy, multi: multi}
			if strings.Contains(filepath.Base(multi), "nft") {
				b.Backend = host.NFT
			}
			release, _, _ := strings.Cut(b.Name, "-")
			link := filepath.Join(t.TempDir(), "iptables") // it goes by its name
			if err := os.Symlink(multi, link); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(link, "--version").CombinedOutput(); err != nil || !strings.Contains(string(out), " v"+release) {
				t.Fatalf("%s: %s is not the build that its folder says, or does not run: %v\n%s", buildsEnv, multi, err, out)
			}
			builds = append(builds, b)
		}
	}
	for _, s := range StandIns() {
		if !slices.ContainsFunc(builds, func(b Build) bool { return b.Name == s.Name }) {
			builds = append(builds, s)
		}
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
