package boot_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/boot"
)

// TestRestorers reads hosts as people have set them up. A file of
// testdata/restorers is what a host has, and in "want" what is found: what starts
// it, where it stands, what it does, of which family, with which file.
func TestRestorers(t *testing.T) {
	files, err := filepath.Glob("testdata/restorers/*.txtar")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d hosts: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			tree := map[string]string{}
			for _, f := range archive.Files {
				if f.Name == "want" {
					want = string(f.Data)
					continue
				}
				tree["/"+f.Name] = strings.TrimSuffix(string(f.Data), "\n")
				if !strings.HasPrefix(string(f.Data), "-> ") {
					tree["/"+f.Name] = string(f.Data)
				}
			}
			if diff := cmp.Diff(want, describe(boot.Read(executable(t, tree)).Restorers)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// executable lays files out; what has a shebang can be run.
func executable(t testing.TB, tree map[string]string) string {
	t.Helper()
	root := testhost.Tree(t, tree)
	for name, content := range tree {
		if strings.HasPrefix(content, "#!") {
			if err := os.Chmod(filepath.Join(root, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func describe(list []host.Restorer) string {
	var b strings.Builder
	for _, r := range list {
		line := fmt.Sprintf("%s: %s %s", r.By, r.At, r.Does)
		if r.Family != "" {
			line += " " + string(r.Family)
		}
		if r.File != "" {
			line += " " + r.File
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// FuzzScript reads any text as a script that a boot runs: nothing panics or takes
// long, and what names a program that changes rules is found.
func FuzzScript(f *testing.F) {
	files, _ := filepath.Glob("testdata/restorers/*.txtar")
	for _, file := range files {
		if archive, err := txtar.ParseFile(file); err == nil {
			for _, part := range archive.Files {
				f.Add(string(part.Data))
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.HasPrefix(text, "-> ") {
			t.Skip()
		}
		tree := map[string]string{"/run/systemd/system/x": "", "/etc/rc.local": "#!/bin/sh\n" + text, "/sbin/ifup": "", "/etc/network/interfaces": text, "/etc/crontab": text,
			"/etc/systemd/system/multi-user.target.wants/a.service": text, "/etc/systemd/system/a.service": text, "/etc/udev/rules.d/a.rules": text}
		for _, r := range boot.Read(executable(t, tree)).Restorers {
			if !strings.Contains(r.At, ":") || strings.ContainsAny(r.By, "\n\x00") {
				t.Errorf("%+v", r)
			}
		}
		// A plain command at the end is found, whatever is defined before it, unless
		// the script ends before.
		tree = map[string]string{"/run/systemd/system/x": "", "/etc/rc.local": "#!/bin/sh\niptables-restore /etc/found\n" + text}
		if got := boot.Read(executable(t, tree)).Restorers; len(got) == 0 {
			t.Errorf("nothing was found in %q", tree["/etc/rc.local"])
		}
	})
}
