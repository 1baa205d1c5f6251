package shell_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/shell"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
)

var shells = [][]string{{"dash"}, {"busybox", "ash"}, {"bash", "--posix"}, {"bash", "-O", "compat41"}}

// hostile are texts that must come through a shell as they are.
var hostile = []string{
	"", "'", "''", `'"'"'`, "$(touch owned)", "`touch owned`", "a\nEOF\n.\n", "a\r\nb", `\\n\0\c\'`, "%s%d%n", "~ * ? [a-z] {a,b} !1 #x ;&|<>", "-n", "\x1b[2J\x07", "\xff\xfe€", "no newline", "two\n\n",
}

// TestQuote: every shell reads what Quote writes as the text alone.
func TestQuote(t *testing.T) {
	for _, sh := range shells {
		if _, err := exec.LookPath(sh[0]); err != nil {
			testhost.Lacks(t, "needs "+sh[0])
		}
		for _, text := range hostile {
			cmd := exec.Command(sh[0], append(append([]string{}, sh[1:]...), "-c", "f() { printf %s "+shell.Quote(text)+"; }; f")...)
			cmd.Dir, cmd.Env = t.TempDir(), []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
			if got, err := cmd.CombinedOutput(); err != nil || string(got) != text {
				t.Errorf("%s: %q comes out as %q, %v", sh[0], text, got, err)
			}
			if found, _ := os.ReadDir(cmd.Dir); len(found) > 0 {
				t.Errorf("%s: %q was carried out", sh[0], text)
			}
		}
	}
}

// planOf changes one file.
func planOf(path, before, after string) planner.Plan {
	return planner.Plan{Host: host.Host{Name: "h\n'; touch owned #"}, Changes: []change.Change{&change.FileChange{
		M:      change.Meta{Address: "file." + path + "\ntouch owned", Action: change.Update},
		Before: host.File{Path: path, Exists: true, Content: before, Mode: 0o644}, After: host.File{Path: path, Exists: true, Content: after, Mode: 0o644},
	}}}
}

// TestHostilePlan: names and contents of a plan are nothing but that.
func TestHostilePlan(t *testing.T) {
	for _, text := range hostile {
		dir := t.TempDir()
		path := filepath.Join(dir, "a '$(touch owned)'\nb")
		var b bytes.Buffer
		if err := shell.Write(&b, planOf(path, text, text+"x"), host.Live{}, "1\ntouch owned", text); err != nil {
			t.Fatal(err)
		}
		// Another host's: it stops after its functions are defined.
		cmd := exec.Command("dash", "-s", "check")
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(b.String())
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "this plan is for ") && !strings.Contains(string(out), "needs root") {
			t.Errorf("%q: %v\n%s", text, err, out)
		}
		if found, _ := os.ReadDir(dir); len(found) > 0 {
			t.Errorf("%q: something was carried out: %v", text, found)
		}
	}
}

// TestRefuses: what a script cannot do as safely is refused.
func TestRefuses(t *testing.T) {
	blocked := planOf("/etc/x", "a", "b")
	blocked.Blocks = []change.Block{{Why: "x"}}
	for name, p := range map[string]planner.Plan{
		"blocked": blocked, "empty": {}, "zero bytes": planOf("/etc/x", "a\x00", "b"),
		"a restart": {Changes: []change.Change{&change.ServiceChange{Step: change.ServiceStep{Commands: [][]string{{"x"}}}}}},
	} {
		var refusal *shell.Refusal
		if err := shell.Write(&bytes.Buffer{}, p, host.Live{}, "", ""); !errors.As(err, &refusal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
