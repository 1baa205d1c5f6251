package apply

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
)

// Whatever is quoted, a shell gets it back as one word, and no control
// character reaches the terminal.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "/etc/a", "a b", "it's", "$(id)", "`id`", "\x1b[2J", "a\nb", "-n", "é", "\\", "%s", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q := quote(s)
		if strings.ContainsFunc(q, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
			t.Fatalf("%q quoted is %q", s, q)
		}
		if strings.Contains(s, "\x00") || strings.HasSuffix(s, "\n") {
			return // no word can hold it, and no path ends in it
		}
		out, err := exec.Command("/bin/sh", "-c", "printf %s. "+q).Output()
		if err != nil || string(out) != s+"." {
			t.Fatalf("%q quoted is %q, which a shell reads as %q, %v", s, q, out, err)
		}
	})
}

// The commands of an error that gives up do what they say: they put back what
// was there.
func TestManual(t *testing.T) {
	root := memory(t)
	path := filepath.Join(root, "it's a file")
	os.WriteFile(path, []byte("new"), 0o600)
	before := host.File{Path: path, Exists: true, Content: "old\x1b[2J", Mode: 0o640, UID: os.Getuid(), GID: os.Getgid()}
	step := file(before, host.File{Path: path, Exists: true, Content: "new"})
	env := diskEnv("")
	env.Dir, env.LockPath = filepath.Join(root, "state"), filepath.Join(root, "lock")
	os.WriteFile(path, []byte(before.Content), 0o640)
	os.Chmod(path, 0o640)
	env.Fault = func(point string, _ int) error {
		if point == "verify" || point == "undo" {
			return errInjected
		}
		return nil
	}
	_, err := Run(t.Context(), env, []change.Step{step}, Options{})
	var incomplete *IncompleteError
	if !errors.As(err, &incomplete) || strings.Contains(err.Error(), "\x1b") {
		t.Fatalf("got %v", err)
	}
	script := strings.Join(incomplete.Left[0].Commands, "\n")
	if out, err := exec.Command("/bin/sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s\n%v: %s", script, err, out)
	}
	info, err := os.Stat(path)
	data, _ := os.ReadFile(path)
	if err != nil || string(data) != before.Content || info.Mode().Perm() != 0o640 {
		t.Errorf("after\n%s\nthe file is %q, %v", script, data, info)
	}
	env.Fault = nil
	if _, err := Recover(t.Context(), env, nil); err != nil {
		t.Errorf("after finishing by hand: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(env.Dir, "by-hand-*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}
