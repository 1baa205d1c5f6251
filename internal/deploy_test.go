package internal_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

// units copies the units of deploy/systemd, with a program that is there in the
// place of ctplan, and returns their paths.
func units(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "deploy", "systemd", "*"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d files in deploy/systemd, %v", len(files), err)
	}
	dir := t.TempDir()
	var paths []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte("/usr/sbin/ctplan"), []byte("/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func analyze(t *testing.T, args ...string) []byte {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		testhost.Lacks(t, err)
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze %q: %v\n%s", args, err, out)
	}
	return out
}

// TestUnits has systemd judge the units: nothing in them that it does not know,
// none that they name missing.
func TestUnits(t *testing.T) {
	paths := units(t)
	out := analyze(t, append([]string{"verify", "--man=no"}, paths...)...)
	for _, path := range paths {
		if bytes.Contains(out, []byte(filepath.Base(path))) {
			t.Errorf("systemd-analyze verify:\n%s", out)
			break
		}
	}
}

// TestExposure holds what runs by the clock to what it needs.
func TestExposure(t *testing.T) {
	for _, path := range units(t) {
		name := filepath.Base(path)
		if name != "ctplan-drift.service" && name != "ctplan-verify.service" {
			continue
		}
		out := analyze(t, "security", "--no-pager", "--offline=true", path)
		found := regexp.MustCompile(`Overall exposure level for ` + regexp.QuoteMeta(name) + `: ([0-9.]+)`).FindSubmatch(out)
		if found == nil {
			t.Fatalf("systemd-analyze security:\n%s", out)
		}
		if level, err := strconv.ParseFloat(string(found[1]), 64); err != nil || level >= 3 {
			t.Errorf("the exposure of %s is %s, want less than 3:\n%s", name, found[1], out)
		}
	}
}
