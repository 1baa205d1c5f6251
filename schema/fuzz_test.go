package schema_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"net/netip"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/schema"
)

func seed(f *testing.F) {
	paths, _ := filepath.Glob("../examples/*.hcl")
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	for _, tt := range bad {
		f.Add([]byte(tt.hcl))
	}
}

// FuzzLoad: nothing panics, and what is accepted can be rendered as it stands.
func FuzzLoad(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		sources := []schema.Source{{Name: "main.hcl", Content: content}}
		for _, host := range []*schema.Facts{nil, facts("h")} {
			config, diags := schema.Load(sources, schema.Vars{}, host)
			if out := text(t, diags); strings.ContainsFunc(out, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }) {
				t.Fatalf("control characters in %q", out)
			}
			if (config == nil) != diags.HasErrors() {
				t.Fatal("a configuration with errors, or none without")
			}
			if config == nil {
				continue
			}
			config.Digest()
			for _, name := range []string{"h", "api-1", "web-1", "nat-1"} {
				d, diags := config.For(name)
				if err := diags.WriteText(io.Discard, 0, true); err != nil {
					t.Fatal(err)
				}
				if !diags.HasErrors() {
					checkClean(t, d)
				}
			}
		}
	})
}

func checkClean(t *testing.T, d declared.Desired) {
	t.Helper()
	clean := func(what, s string) {
		t.Helper()
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune("\"'`\\\u2028\u2029", r) }) {
			t.Fatalf("%s: %q", what, s)
		}
	}
	clean("block", d.Block)
	for _, p := range append(slices.Clone(d.InitScripts), d.Files.Sysctl, d.Files.Modprobe, d.Files.ModulesLoad, d.Files.RulesV4, d.Files.RulesV6) {
		clean("path", p)
		if p != "" && (p[0] != '/' || filepath.Clean(p) != p) {
			t.Fatalf("path: %q", p)
		}
	}
	if len(d.Families) == 0 || d.StatefulRules == "" {
		t.Fatalf("families %v, stateful rules %q", d.Families, d.StatefulRules)
	}
	if d.Mode == declared.Tuned != (d.Max != nil) || d.Mode == declared.Tuned != (d.Hashsize != nil) {
		t.Fatalf("mode %q with max %v, hashsize %v", d.Mode, d.Max, d.Hashsize)
	}
	if d.Max != nil && (d.Max.Value < 1 || d.Max.Value > 1<<31-1 || d.Hashsize.Value < 1 || d.Hashsize.Value > 1<<31-1) {
		t.Fatalf("max %v, hashsize %v", d.Max, d.Hashsize)
	}
	for _, timeout := range d.Timeouts {
		if declared.TimeoutKeys[timeout.Name] == "" || timeout.Seconds < 0 {
			t.Fatalf("timeout %v", timeout)
		}
	}
	if d.Mode == declared.Notrack != (len(d.Notrack) > 0) {
		t.Fatalf("mode %q with %d notrack blocks", d.Mode, len(d.Notrack))
	}
	for _, a := range slices.Concat(d.Notrack, d.Accept) {
		clean("name", a.Name)
		clean("protocol", a.Protocol)
		clean("interface", a.Interface)
		if a.Name == "" || len(a.Name) > 64 || len(a.Interface) > 15 || strings.ContainsAny(a.Interface, " /") || len(a.Families) == 0 || a.Direction == "" {
			t.Fatalf("%+v", a)
		}
		for _, p := range slices.Concat(a.Local, a.Remote) {
			if !p.IsValid() || p.Masked() != p || p.Addr().Is4In6() || p.Addr().Zone() != "" {
				t.Fatalf("prefix %v", p)
			}
		}
		for _, ports := range [][]host.PortRange{a.LocalPorts, a.RemotePorts} {
			last := 0
			for _, r := range ports {
				if int(r.From) <= last || r.To < r.From {
					t.Fatalf("ports %v", ports)
				}
				last = int(r.To)
			}
		}
	}
}

// FuzzFormat: formatting twice is formatting once, and changes no meaning.
func FuzzFormat(f *testing.F) {
	seed(f)
	f.Add([]byte("a=1\nbb   =2 # c\nx{}\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		src := schema.Source{Name: "main.hcl", Content: content}
		once, diags := schema.Format(src)
		if diags.HasErrors() {
			return
		}
		again := schema.Source{Name: "main.hcl", Content: once}
		twice, diags := schema.Format(again)
		if diags.HasErrors() {
			t.Fatalf("%q formats to %q: %v", content, once, diags.Err())
		}
		if !bytes.Equal(once, twice) {
			t.Fatalf("%q formats to %q, then to %q", content, once, twice)
		}
		before, d1 := schema.Load([]schema.Source{src}, schema.Vars{}, facts("h"))
		after, d2 := schema.Load([]schema.Source{again}, schema.Vars{}, facts("h"))
		if d1.HasErrors() != d2.HasErrors() {
			t.Fatalf("%q formats to %q: %v, then %v", content, once, d1.Err(), d2.Err())
		}
		if before == nil {
			return
		}
		a, _ := before.For("h")
		b, _ := after.For("h")
		opts := []cmp.Option{cmpopts.IgnoreTypes(declared.Pos{}), cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })}
		if diff := cmp.Diff(a, b, opts...); diff != "" {
			t.Fatalf("%q formats to %q:\n%s", content, once, diff)
		}
	})
}
