package schema_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/schema"
)

// tuned wraps attributes in a conntrack block of mode tuned.
func tuned(body string) string {
	return "conntrack \"gw\" {\n  mode = \"tuned\"\n  " + body + "\n}\n"
}

// traffic wraps the body of an accept block.
func traffic(body string) string {
	return "conntrack \"web\" {\n  mode = \"disabled\"\n  accept \"a\" {\n    " + strings.ReplaceAll(body, "\n", "\n    ") + "\n  }\n}\n"
}

// bad are configurations that must be refused. What is said about them is in
// testdata/bad.txt.
var bad = []struct {
	name, hcl string
	vars      schema.Vars
}{
	{name: "not HCL", hcl: "{\"conntrack\": [}\n"},
	{name: "open block", hcl: "conntrack \"gw\" {\n  mode = \"tuned\"\n"},
	{name: "binary", hcl: "conntrack \"gw\" {\n\x7fELF\x00\x01\n}\n"},
	{name: "latin-1", hcl: "# caf\xe9\n"},
	{name: "deep brackets", hcl: tuned("max = " + strings.Repeat("(", 2000) + "1" + strings.Repeat(")", 2000))},
	{name: "huge literal", hcl: tuned(`max = "${1e600000000}"`)},
	{name: "escape sequence in the source", hcl: "conntrack \"gw\" {\n  mode = \"\x1b[2Jtuned\"\n}\n"},
	{name: "direction override in the source", hcl: "conntrack \"gw\" {\n  mode = \"\u202edenut\"\n}\n"},

	{name: "unknown block", hcl: "contrack \"gw\" {\n}\n"},
	{name: "unknown attribute", hcl: tuned("maxx = 5\n  max = 5")},
	{name: "a word of iptables", hcl: "conntrack \"dns\" {\n  mode = \"notrack\"\n  notrack \"dns\" {\n    protocol = \"udp\"\n    port = 53\n  }\n}\n"},
	{name: "all errors at once", hcl: tuned("max = 0\n  hashsize = 0\n  zzz = 1\n  timeouts = { tcp_estblished = 1, udp = -1 }\n  accept \"x y\" { protocl = \"tcp\" }")},
	{name: "label missing", hcl: "conntrack {\n  mode = \"tuned\"\n}\n"},
	{name: "label with quote", hcl: "conntrack \"a\\\"b\" {\n  mode = \"tuned\"\n  max = 1\n}\n"},
	{name: "label with newline", hcl: "conntrack \"web\" {\n  mode = \"disabled\"\n  accept \"a\\nCOMMIT\" {}\n}\n"},
	{name: "duplicate label", hcl: "conntrack \"web\" {\n  mode = \"disabled\"\n  accept \"a\" {}\n  accept \"a\" {}\n}\n"},
	{name: "duplicate conntrack", hcl: tuned("max = 1") + tuned("max = 2")},

	{name: "mode missing", hcl: "conntrack \"gw\" {\n}\n"},
	{name: "mode null", hcl: "conntrack \"gw\" {\n  mode = null\n}\n"},
	{name: "mode unknown", hcl: "conntrack \"gw\" {\n  mode = \"notrak\"\n}\n"},
	{name: "mode a number", hcl: "conntrack \"gw\" {\n  mode = 1\n}\n"},
	{name: "max missing", hcl: "conntrack \"gw\" {\n  mode = \"tuned\"\n}\n"},
	{name: "max 1.5", hcl: tuned("max = 1.5")},
	{name: "max -1", hcl: tuned("max = -1")},
	{name: "max 0", hcl: tuned("max = 0")},
	{name: "max 2^63", hcl: tuned("max = 9223372036854775808")},
	{name: "max 1e400", hcl: tuned("max = 1e400")},
	{name: "max just too large", hcl: tuned("max = 2147483648")},
	{name: "max almost whole", hcl: tuned("max = 1.00000000000000000000000001")},
	{name: "max infinite", hcl: tuned("max = 1 / 0")},
	{name: "max a word", hcl: tuned(`max = "many"`)},
	{name: "max a list", hcl: tuned(`max = [1]`)},
	{name: "max by variable", hcl: "variable \"n\" {\n  default = 1.5\n}\n" + tuned(`max = var.n * 3`)},
	{name: "hashsize 0", hcl: tuned("max = 1\n  hashsize = 0")},
	{name: "hashsize 2^31", hcl: tuned("max = 1\n  hashsize = 2147483648")},
	{name: "timeouts", hcl: tuned("max = 1\n  timeouts = {\n    tcp_establishd = 1\n    udp = 1.5\n    icmp = \"soon\"\n    gre = 1\n    gre = 2\n  }")},
	{name: "timeouts a list", hcl: tuned("max = 1\n  timeouts = [1]")},
	{name: "max in notrack", hcl: "conntrack \"x\" {\n  mode = \"notrack\"\n  max = 1\n}\n"},
	{name: "notrack in disabled", hcl: "conntrack \"x\" {\n  mode = \"disabled\"\n  notrack \"a\" {}\n}\n"},
	{name: "accept in tuned", hcl: tuned("max = 1\n  accept \"a\" {}")},
	{name: "initiator in notrack", hcl: "conntrack \"x\" {\n  mode = \"notrack\"\n  notrack \"a\" {\n    protocol = \"tcp\"\n    initiator = \"local\"\n  }\n}\n"},

	{name: "address", hcl: traffic(`remote = "54.239.25.2000"`)},
	{name: "address in a list", hcl: traffic(`remote = ["192.0.2.1", "api.example.net"]`)},
	{name: "address with host bits", hcl: traffic(`remote = "192.0.2.7/24"`)},
	{name: "address with a zone", hcl: traffic(`local = "fe80::1%eth0"`)},
	{name: "address mapped", hcl: traffic(`local = "::ffff:192.0.2.1"`)},
	{name: "addresses none", hcl: traffic(`remote = []`)},
	{name: "address with newline", hcl: traffic(`remote = "192.0.2.1\n-A INPUT -j ACCEPT"`)},
	{name: "port range inverted", hcl: traffic("protocol = \"tcp\"\nlocal_port = \"443-80\"")},
	{name: "port 0", hcl: traffic("protocol = \"tcp\"\nlocal_port = 0")},
	{name: "port 65536", hcl: traffic("protocol = \"tcp\"\nlocal_port = [80, 65536]")},
	{name: "port with colon", hcl: traffic("protocol = \"tcp\"\nlocal_port = \"80:90\"")},
	{name: "port true", hcl: traffic("protocol = \"tcp\"\nlocal_port = true")},
	{name: "ports without protocol", hcl: traffic(`local_port = 80`)},
	{name: "ports of icmp", hcl: traffic("protocol = \"icmp\"\nremote_port = 80")},
	{name: "protocol", hcl: traffic(`protocol = "tpc"`)},
	{name: "protocol 256", hcl: traffic(`protocol = 256`)},
	{name: "interface with newline", hcl: traffic(`interface = "eth0\nCOMMIT"`)},
	{name: "interface with quote", hcl: traffic(`interface = "eth\"0"`)},
	{name: "interface too long", hcl: traffic(`interface = "enp0s31f6.10000+"`)},
	{name: "interface an option", hcl: traffic(`interface = "-j"`)},
	{name: "direction", hcl: traffic(`direction = "inn"`)},
	{name: "initiator without tcp", hcl: traffic("protocol = \"udp\"\ninitiator = \"local\"")},
	{name: "initiator without sides", hcl: traffic("protocol = \"tcp\"\ndirection = \"forward\"\ninitiator = \"local\"")},
	{name: "families apart", hcl: traffic("local = \"192.0.2.1\"\nremote = \"2001:db8::1\"")},
	{name: "families of icmp", hcl: traffic("protocol = \"icmp\"\nremote = \"2001:db8::1\"")},
	{name: "families none", hcl: traffic(`families = []`)},
	{name: "families wrong", hcl: traffic(`families = ["ip4"]`)},

	{name: "path with newline", hcl: tuned("max = 1\n  files {\n    sysctl = \"/etc/sysctl.conf\\nx\"\n  }")},
	{name: "path relative", hcl: tuned("max = 1\n  init_scripts = [\"init.d/iptables\"]")},
	{name: "path not clean", hcl: tuned("max = 1\n  files {\n    modprobe = \"/etc/../etc/x\"\n  }")},
	{name: "paths equal", hcl: tuned("max = 1\n  files {\n    modprobe = \"/etc/x\"\n    sysctl = \"/etc/x\"\n  }")},
	{name: "files twice", hcl: tuned("max = 1\n  files {}\n  files {}")},
	{name: "host pattern", hcl: tuned("max = 1\n  hosts = [\"[a-\"]")},
	{name: "hosts a string", hcl: tuned("max = 1\n  hosts = \"gw\"")},
	{name: "risk", hcl: tuned("max = 1\n  allow_risk = [\"natt\"]")},
	{name: "reload", hcl: tuned("max = 1\n  reload = \"restart-sevice\"")},
	{name: "reload in another mode", hcl: "conntrack \"gw\" {\n  mode   = \"disabled\"\n  reload = \"live\"\n}\n"},
	{name: "reload misspelt", hcl: tuned("max = 1\n  relaod = \"live\"")},
	{name: "stateful_rules", hcl: tuned("max = 1\n  stateful_rules = \"keep\"")},
	{name: "two blocks for every host", hcl: tuned("max = 1") + strings.Replace(tuned("max = 1"), "gw", "gw2", 1)},

	{name: "block for attribute", hcl: tuned("max = 1\n  timeouts {}")},
	{name: "attribute for block", hcl: tuned("max = 1\n  files = {}")},
	{name: "undeclared variable", hcl: "variable \"entries\" {\n  default = 1\n}\n" + tuned("max = var.entires")},
	{name: "undeclared local", hcl: "locals {\n  a = local.bb\n  b = 1\n}\n" + tuned("max = local.c")},
	{name: "locals in a circle", hcl: "locals {\n  a = local.b + 1\n  b = local.c\n  c = local.a\n  d = local.a\n}\n"},
	{name: "unknown fact", hcl: tuned("max = host.cpu")},
	{name: "unknown conntrack fact", hcl: tuned("max = host.conntrack.size")},
	{name: "unknown function", hcl: tuned("max = mx(1, 2)")},
	{name: "function argument", hcl: tuned(`max = parseint("zz", 10)`)},
	{name: "format too wide", hcl: tuned(`max = format("%999999999s", "x")`)},
	{name: "indent too wide", hcl: tuned(`max = indent(999999999, "x")`)},
	{name: "number from a string", hcl: tuned(`max = "1e600000000"`)},
	{name: "variable without value", hcl: "variable \"n\" {\n  type = number\n}\n" + tuned("max = var.n")},
	{name: "variable of the wrong type", hcl: "variable \"n\" {\n  type = number\n  default = \"x\"\n}\n"},
	{name: "variable type", hcl: "variable \"n\" {\n  type = strin\n}\n"},
	{name: "variable twice", hcl: "variable \"n\" {\n  default = 1\n}\nvariable \"n\" {\n  default = 1\n}\n"},
	{name: "variable name", hcl: "variable \"0 x\" {\n  default = 1\n}\n"},
	{name: "validation", hcl: "variable \"n\" {\n  default = 1\n  validation {\n    condition = var.n > 1\n    error_message = \"More than ${var.n} is needed.\"\n  }\n}\n"},
	{name: "validation of a flag", hcl: "variable \"n\" {\n  type = number\n  validation {\n    condition = var.n > 1\n    error_message = \"More is needed.\"\n  }\n}\n",
		vars: schema.Vars{Flags: []string{"n=1"}}},
	{name: "flag undeclared", hcl: "variable \"entries\" {\n  default = 1\n}\n", vars: schema.Vars{Flags: []string{"entires=2"}}},
	{name: "flag undeclared without variables", hcl: "", vars: schema.Vars{Flags: []string{"x=2"}}},
	{name: "flag without value", hcl: "", vars: schema.Vars{Flags: []string{"x"}}},
	{name: "flag of the wrong type", hcl: "variable \"n\" {\n  type = number\n}\n", vars: schema.Vars{Flags: []string{"n=1,5"}}},
	{name: "flag that does not parse", hcl: "variable \"n\" {\n  type = list(string)\n}\n", vars: schema.Vars{Flags: []string{"n=[\"a\""}}},
	{name: "environment of the wrong type", hcl: "variable \"n\" {\n  type = number\n}\n", vars: schema.Vars{Env: []string{"CTPLAN_VAR_n=many", "CTPLAN_VAR_other=1"}}},
	{name: "variable file", hcl: "variable \"entries\" {\n  default = 1\n}\n", vars: schema.Vars{Files: []string{"testdata/bad.vars"}}},
	{name: "variable file missing", hcl: "", vars: schema.Vars{Files: []string{"testdata/absent.vars"}}},
}

func TestBad(t *testing.T) {
	var out bytes.Buffer
	for _, tt := range bad {
		_, diags := schema.Load([]schema.Source{{Name: "main.hcl", Content: []byte(tt.hcl)}}, tt.vars, nil)
		if !diags.HasErrors() || diags.Err() == nil {
			t.Errorf("%s: accepted", tt.name)
		}
		got := text(t, diags)
		if strings.ContainsAny(got, "\x1b\x00\r\u202e") {
			t.Errorf("%s: control characters in %q", tt.name, got)
		}
		fmt.Fprintf(&out, "==== %s\n%s", tt.name, got)
	}
	golden.Check(t, "bad.txt", out.Bytes())
}

func TestBadForHost(t *testing.T) {
	hcl := "conntrack \"a\" {\n  hosts = [\"api-*\"]\n  mode = \"disabled\"\n}\nconntrack \"b\" {\n  hosts = [\"*-1\"]\n  mode = \"disabled\"\n}\n"
	config, diags := schema.Load([]schema.Source{{Name: "main.hcl", Content: []byte(hcl)}}, schema.Vars{}, facts("api-1"))
	if diags.HasErrors() {
		t.Fatal(diags.Err())
	}
	_, diags = config.For("api-1")
	golden.Check(t, "bad_host.txt", []byte(text(t, diags)))
	for _, host := range []string{"api-2", "db-1", "API-3.example.net", "db-1.example.net"} {
		if d, diags := config.For(host); diags.HasErrors() || d.Block == "" {
			t.Errorf("%s: %v %v", host, d, diags.Err())
		}
	}
	if d, diags := config.For("web"); diags.HasErrors() || d.Mode != "" {
		t.Errorf("web: %v %v", d, diags.Err())
	}
}

// TestBrokenFileBesideOthers: a file that does not parse hides no error of
// another file, and makes up none.
func TestBrokenFileBesideOthers(t *testing.T) {
	_, diags := schema.Load([]schema.Source{
		{Name: "a.hcl", Content: []byte("variable \"n\" {\n")},
		{Name: "b.hcl", Content: []byte(tuned("max = var.n\n  hashsize = 0"))},
	}, schema.Vars{Flags: []string{"n=1"}}, nil)
	golden.Check(t, "bad_files.txt", []byte(text(t, diags)))
}

func TestReadSources(t *testing.T) {
	dir := t.TempDir()
	if _, err := schema.ReadSources(dir); err == nil || !strings.Contains(err.Error(), "no *.hcl files") {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := schema.ReadSources(filepath.Join(dir, "absent")); err == nil {
		t.Error("absent file accepted")
	}
	write := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("b.hcl", nil)
	write("a.hcl", nil)
	write(".hidden.hcl", []byte("{"))
	write("notes.txt", []byte("{"))
	if err := os.Mkdir(filepath.Join(dir, "sub.hcl"), 0o755); err != nil {
		t.Fatal(err)
	}
	sources, err := schema.ReadSources(dir)
	if err != nil || len(sources) != 2 || filepath.Base(sources[0].Name) != "a.hcl" {
		t.Fatalf("%v %v", sources, err)
	}
	write("big.hcl", bytes.Repeat([]byte("#"), 10<<20))
	if _, err := schema.ReadSources(dir); err == nil || !strings.Contains(err.Error(), "big.hcl") {
		t.Errorf("10 MB file: %v", err)
	}
	// An endless file that claims to be empty.
	if _, err := schema.ReadSources("/dev/zero"); err == nil || !strings.Contains(err.Error(), "4 MiB") {
		t.Errorf("/dev/zero: %v", err)
	}
}

// TestNesting: files that nest without end are refused before the parser or
// the evaluator runs out of stack, which no program survives.
func TestNesting(t *testing.T) {
	tooComplex := func(d schema.Diagnostics) bool {
		return d.HasErrors() && d.List()[0].Summary == "Expression too complex"
	}
	for _, unit := range []string{
		"(", "[", "!", "-\t", "1?", "1?1:", "1+", "1<", "\"${", "\"%{if true}", "f(", "[for x in ", "{a=", "<<A\n${\n",
	} {
		for _, prefix := range []string{"a = ", "locals {\n a = ", "a = (", "a = x[y] + "} {
			hcl := prefix + strings.Repeat(unit, 1<<16/len(unit))
			if _, diags := schema.Load([]schema.Source{{Name: "main.hcl", Content: []byte(hcl)}}, schema.Vars{}, nil); !tooComplex(diags) {
				t.Errorf("%q repeated behind %q: %v", unit, prefix, diags.Err())
			}
		}
	}
	for _, hcl := range []string{
		"locals {\n a = [0]\n b = local.a" + strings.Repeat("[local.a[0]]", 5000) + "\n}\n",
		"locals {\n a = 1" + strings.Repeat(" + 1", 5000) + "\n}\n",
		strings.Repeat("a {\n", 5000),
	} {
		if _, diags := schema.Load([]schema.Source{{Name: "main.hcl", Content: []byte(hcl)}}, schema.Vars{}, nil); !tooComplex(diags) {
			t.Errorf("%.40q…: %v", hcl, diags.Err())
		}
	}
	// Many things beside each other are no nesting.
	wide := "locals {\n a = [" + strings.Repeat("(1 + 2) * -3,\n", 2000) + "]\n}\n" + tuned("max = length(local.a)")
	if _, diags := schema.Load([]schema.Source{{Name: "main.hcl", Content: []byte(wide)}}, schema.Vars{}, nil); diags.HasErrors() {
		t.Error(diags.Err())
	}
}
