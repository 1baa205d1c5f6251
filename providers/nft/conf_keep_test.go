package nft

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftconf"
)

// changed makes the kernel's tables what a plan might: a table of ctplan's own, and
// in each chain at input a jump where the first rule on state stood, which all go.
func changed(t *testing.T, ns *nstest.NS, tables []host.NFTTable) {
	script := "table inet ctplan { chain CTPLAN-prerouting { type filter hook prerouting priority raw; policy accept; udp dport { 53, 123 } notrack comment \"dns\"; }; }\n"
	for _, table := range tables {
		if table.Family != "inet" && table.Family != "ip" {
			continue
		}
		made := false
		for _, c := range table.Chains {
			if c.Hook != "input" {
				continue
			}
			if !made {
				script += fmt.Sprintf("table %s %s { chain CTPLAN-input { tcp dport { 22, 80 } accept; udp sport 53 accept; }; }\n", table.Family, table.Name)
				made = true
			}
			jumped := false
			for _, r := range c.Rules {
				if !strings.Contains(r.Text, "ct state") || strings.Contains(r.Text, "…") {
					continue
				}
				if !jumped {
					script += fmt.Sprintf("insert rule %s %s %s handle %d jump CTPLAN-input\n", table.Family, table.Name, c.Name, r.Handle)
					jumped = true
				}
				script += fmt.Sprintf("delete rule %s %s %s handle %d\n", table.Family, table.Name, c.Name, r.Handle)
			}
			if !jumped {
				script += fmt.Sprintf("add rule %s %s %s jump CTPLAN-input\n", table.Family, table.Name, c.Name)
			}
		}
	}
	ns.RunInput(script, "nft", "-f", "-")
}

func readTables(t *testing.T) []host.NFTTable {
	tables, err := Read(nil)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// model is what tables say, whatever their order and handles.
func model(tables []host.NFTTable) string {
	var out []string
	for _, t := range tables {
		for _, c := range t.Chains {
			text := fmt.Sprintf("%s %s %s %s %s %d %s\n", t.Family, t.Name, c.Name, c.Type, c.Hook, c.Priority, c.Policy)
			if strings.HasPrefix(c.Name, "__") {
				continue
			}
			for _, r := range c.Rules {
				text += "  " + r.Text + "\n"
			}
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// TestKeep: of rules files as people write them, what is changed in the kernel is
// what they load once they are edited; then nothing is left to edit.
func TestKeep(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		h := &confHost{t: t, ns: ns}
		kept := 0
		for _, c := range savedConfs(t) {
			conf := nftconf.Load([]string{c.main}, c.files)
			again := h.load(&c, c.files, 1) == h.load(&c, c.files, 2) // some add their rules to those that stand
			h.load(&c, c.files, 1)
			before := readTables(t)
			changed(t, ns, before)
			after := readTables(t)
			edit, refused := nftconf.Keep(&conf, before, after)
			var edits change.Edits
			if refused = append(refused, edit.Apply(&conf, c.files, &edits)...); len(refused) > 0 {
				t.Logf("%s: %v", c.name, refused)
				continue
			}
			kept++
			files := nftconf.After(conf.Mains, c.files, edits)
			h.load(&c, files, 1)
			booted := readTables(t)
			if got, want := model(booted), model(after); got != want {
				t.Errorf("%s: loaded\n%swant\n%s", c.name, got, want)
			}
			conf = nftconf.Load([]string{c.main}, files)
			edit, refused = nftconf.Keep(&conf, booted, booted)
			var none change.Edits
			if refused = append(refused, edit.Apply(&conf, files, &none)...); len(refused) > 0 || len(none.Changes()) > 0 {
				t.Errorf("%s: once more: %v, %v", c.name, refused, none.Changes())
			}
			if again {
				h.load(&c, files, 2)
				if got, want := model(readTables(t)), model(after); got != want {
					t.Errorf("%s: loaded twice\n%swant\n%s", c.name, got, want)
				}
			}
		}
		t.Logf("%d files kept", kept)
		if kept < 16 {
			t.Errorf("only %d files were kept", kept)
		}
	}, "/etc")
}

// TestCheckConf: what nft would not load is not written, and it says where.
func TestCheckConf(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		write := func(name, content string) {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		check := func(want string, edited ...host.File) {
			t.Helper()
			err := CheckConf(context.Background(), run.Exec{}, "", edited)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
		const good = "flush ruleset\ntable inet fw { chain c { accept; }; }\ninclude \"/etc/fw/*.nft\"\n"
		write("/etc/nftables.conf", good)
		write("/etc/fw/b.nft", "add rule inet fw c drop\n")
		main := host.File{Path: "/etc/nftables.conf", Exists: true, Content: good}
		bad := host.File{Path: "/etc/fw/b.nft", Exists: true, Content: "# one\nadd rule inet fw nowhere drop\n"}
		check("", main)
		check("", host.File{Path: "/etc/other", Exists: true, Content: "{"})
		check("/etc/fw/b.nft:2: Error: ", bad)
		check("/etc/nftables.conf:2: Error: syntax error", host.File{Path: "/etc/nftables.conf", Exists: true, Content: "\ntable inet {\n"})
		check("", host.File{Path: "/etc/fw/b.nft"})
		write("/etc/fw/b.nft", "add rule inet fw gone drop\n")
		check("", bad) // it does not load as it stands: nothing is proved
		if out := ns.Run("nft", "list", "ruleset"); out != "" {
			t.Errorf("it has loaded something:\n%s", out)
		}
	}, "/etc")
}
