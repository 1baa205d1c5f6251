package apply

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
)

// TestAnnounce: everybody and the log are told what is left, without what others
// wrote reaching a terminal as it is.
func TestAnnounce(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"wall":   "#!/bin/sh\ncat > " + dir + "/walled\n",
		"logger": "#!/bin/sh\nprintf '%s\\n' \"$@\" > " + dir + "/logged\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	var left []LeftStep
	for range 7 {
		left = append(left, LeftStep{Step: change.Step{Addresses: []string{"iptables.ipv4.filter"}}, Err: errors.New("no \x1b[31mred\nline")})
	}
	Announce(&IncompleteError{ID: 7, Cause: errors.New("x"), Left: left})
	for _, name := range []string{"walled", "logged"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"transaction 7 could not be taken back whole", "iptables.ipv4.filter is not back as it was: no ?[31mred line", "and 2 more", "ctplan recover"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: no %q in\n%s", name, want, text)
			}
		}
		if strings.Contains(string(text), "\x1b") {
			t.Errorf("%s carries an escape sequence: %q", name, text)
		}
	}
}
