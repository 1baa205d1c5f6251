package schema_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctplan/ctplan/schema"
)

// inFolder writes files into a folder and loads the configuration in it.
func inFolder(t *testing.T, files map[string]string) (string, func() (*schema.Config, schema.Diagnostics)) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, func() (*schema.Config, schema.Diagnostics) {
		sources, err := schema.ReadSources(dir)
		if err != nil {
			t.Fatal(err)
		}
		return schema.Load(sources, schema.Vars{}, facts("web-1"))
	}
}

func notrack(remote string) string {
	return "conntrack \"web\" {\n  mode = \"notrack\"\n  notrack \"partners\" {\n    protocol = \"tcp\"\n    remote   = " + remote + "\n  }\n}\n"
}

// TestFileFunctions reads lists of networks as they lie beside configurations.
func TestFileFunctions(t *testing.T) {
	for name, expr := range map[string]string{
		"lines":    `compact(split("\n", file("lists/partners.txt")))`,
		"yaml":     `yamldecode(file("lists/partners.yaml")).partners[*].net`,
		"csv":      `[for row in csvdecode(file("lists/partners.csv")) : row.net]`,
		"json":     `jsondecode(file("lists/partners.json"))`,
		"a set":    `flatten([for f in fileset("lists", "**/*.txt") : compact(split("\n", file("lists/${f}")))])`,
		"template": `jsondecode(templatefile("lists/nets.tftpl", { nets = ["192.0.2.0/24", "198.51.100.7"] }))`,
		"exists":   `fileexists("lists/none") ? [] : compact(split("\n", file("./lists/../lists/partners.txt")))`,
	} {
		_, load := inFolder(t, map[string]string{
			"main.hcl": notrack(expr), "lists/partners.txt": "192.0.2.0/24\n198.51.100.7\n", "lists/partners.csv": "name,net\na,192.0.2.0/24\nb,198.51.100.7\n",
			"lists/partners.yaml": "partners:\n  - {name: a, net: 192.0.2.0/24}\n  - {name: b, net: 198.51.100.7}\n", "lists/partners.json": `["192.0.2.0/24", "198.51.100.7"]`,
			"lists/nets.tftpl": "[%{ for i, n in nets }%{ if i > 0 }, %{ endif }\"${n}\"%{ endfor }]",
		})
		config, diags := load()
		if diags.HasErrors() {
			t.Errorf("%s:\n%s", name, text(t, diags))
			continue
		}
		d, _ := config.For("web-1")
		if got := d.Notrack[0].Remote; len(got) != 2 || got[0].String() != "192.0.2.0/24" || got[1].String() != "198.51.100.7/32" {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestFilesStayInside: no way leads out of the configuration's folder, and
// nothing there can hang or fill the memory.
func TestFilesStayInside(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("192.0.2.0/24"), 0o600); err != nil {
		t.Fatal(err)
	}
	bomb := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'k'; c++ {
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+", ", 9) + "*" + string(c-1) + "]\n"
	}
	for expr, says := range map[string]string{
		`file("../` + filepath.Base(outside) + `/secret")`: "files lie in the folder of the configuration",
		`file("` + outside + `/secret")`:                   "files lie in the folder of the configuration",
		`file("link")`:                                     "files lie in the folder of the configuration",
		`file("linked/secret")`:                            "files lie in the folder of the configuration",
		`fileexists("link") ? "10.0.0.1" : "10.0.0.2"`:     "files lie in the folder of the configuration",
		`fileset("..", "*")`:                               "there is no folder \"..\"",
		`fileset(".", "../*")`:                             "This list is empty",
		`fileset(".", "[")`:                                "is no pattern",
		`file("none")`:                                     "there is no file \"none\"",
		`file(".")`:                                        "no regular file",
		`file("pipe")`:                                     "no regular file",
		`file("huge")`:                                     "are more than the 4 MiB",
		`file("binary")`:                                   "not text in UTF-8",
		`yamldecode(file("bomb"))`:                         "more than 8 aliases",
		`yamldecode(file("deep"))`:                         "more than 100 levels",
		`yamldecode(file("stairs"))`:                       "more than 100 levels",
		`templatefile("deep.tftpl", {})`:                   "nest more than 1000 deep",
		`templatefile("unknown.tftpl", { b = 1 })`:         "unknown.tftpl:2 uses \"a\"",
		`templatefile("itself.tftpl", {})`:                 "no function named \"templatefile\"",
		`templatefile("bad.tftpl", {})`:                    "bad.tftpl:1",
		`templatefile("bad.tftpl", 5)`:                     "a map or an object",
	} {
		dir, load := inFolder(t, map[string]string{
			"main.hcl": notrack(expr), "binary": "\xff\xfe", "bomb": bomb, "deep": strings.Repeat("[", 100000), "stairs": strings.Repeat("- ", 100000), "deep.tftpl": "${" + strings.Repeat("(", 100000),
			"unknown.tftpl": "x\n${a}\n", "itself.tftpl": `${templatefile("itself.tftpl", {})}`, "bad.tftpl": "${",
		})
		for _, err := range []error{
			os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "link")), os.Symlink(outside, filepath.Join(dir, "linked")),
			syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600), os.WriteFile(filepath.Join(dir, "huge"), nil, 0o600), os.Truncate(filepath.Join(dir, "huge"), 1<<30),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		_, diags := load()
		if out := strings.Join(strings.Fields(text(t, diags)), " "); !diags.HasErrors() || !strings.Contains(out, says) || strings.Contains(out, "goroutine") {
			t.Errorf("%s does not say %q:\n%.600s", expr, says, out)
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("%s took %s", expr, took)
		}
	}
}

// TestFilesInDigest: a configuration is another one when a file is that it
// reads.
func TestFilesInDigest(t *testing.T) {
	dir, load := inFolder(t, map[string]string{"main.hcl": notrack(`fileexists("more") ? file("more") : file("list")`), "list": "192.0.2.1", "other": "x"})
	digest := func() string {
		config, diags := load()
		if diags.HasErrors() {
			t.Fatal(text(t, diags))
		}
		return config.Digest()
	}
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := digest()
	write("other", "y")
	if digest() != first {
		t.Error("a file that is not read makes a difference")
	}
	write("list", "192.0.2.2")
	second := digest()
	write("more", "192.0.2.2")
	if third := digest(); second == first || third == second {
		t.Error("files that are read make no difference")
	}
}
