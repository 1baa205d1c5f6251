package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner/host"
)

// Tools is the way to the host's iptables commands. The zero Tools runs them
// for real and waits DefaultWait for the xtables lock.
type Tools struct {
	Runner run.Runner    // nil: run.Exec
	Wait   time.Duration // for the xtables lock of the legacy backend, in whole seconds; 0: DefaultWait

	// NoNFT says that nf_tables is not loaded, so that nftables holds nothing:
	// Read does not ask it then, since a question would load it.
	NoNFT bool
}

// DefaultWait is how long a restore waits for the xtables lock.
const DefaultWait = 10 * time.Second

func (t Tools) runner() run.Runner {
	if t.Runner == nil {
		return run.Exec{}
	}
	return t.Runner
}

func (t Tools) wait() time.Duration {
	if t.Wait <= 0 {
		return DefaultWait
	}
	return t.Wait
}

// Raw is what one iptables-save printed, normalised: no comments, all counters
// zero, and no table that holds nothing and lets everything pass, since the
// kernel makes such tables on a mere look. So two reads of an unchanged host
// are equal byte for byte. Text is for Parse.
type Raw struct {
	Family  host.Family  `json:"family"`
	Backend host.Backend `json:"backend"`
	Primary bool         `json:"primary"` // what plain iptables speaks to
	Version string       `json:"version,omitempty"`
	Text    string       `json:"text,omitempty"`

	// Incompatible are the tables of iptables-nft that iptables-save does not
	// show, because they hold what iptables has no words for.
	Incompatible []string `json:"incompatible,omitempty"`

	set    host.Ruleset // what Parse says of parsed
	err    error
	parsed string
}

// Ruleset is Parse of the text. It is made already where Read made the Raw,
// while iptables-save was still printing.
func (r Raw) Ruleset() (host.Ruleset, error) {
	if r.parsed == "" || r.parsed != r.Text { // one string, so this costs nothing
		r.set, r.err = Parse(r.Family, r.Text)
	}
	r.set.Backend, r.set.Primary = r.Backend, r.Primary
	return r.set, r.err
}

// Read reads the rules of both families through the backend that plain
// iptables speaks to, and through the other one if it has any. The notes say
// what could not be read. It starts one process a family and no more, unless
// the other backend has tables, or nothing has and the version must be asked for.
//
// Errors: ErrNotInstalled, ErrNotPermitted, or what the command said.
func (t Tools) Read(ctx context.Context) ([]Raw, []string, error) {
	type result struct {
		raws  []Raw
		notes []string
		err   error
	}
	results := make([]result, len(host.Families))
	read := func(i int) {
		r := &results[i]
		r.raws, r.notes, r.err = t.readFamily(ctx, host.Families[i])
	}
	// IPv4 at once: where there are many rules, they are IPv4's.
	var wg sync.WaitGroup
	for i := range results[1:] {
		wg.Go(func() { read(i + 1) })
	}
	read(0)
	wg.Wait()

	var raws []Raw
	var notes []string
	for i, f := range host.Families {
		r := results[i]
		if f == host.IPv6 && results[0].err == nil {
			if errors.Is(r.err, exec.ErrNotFound) {
				notes = append(notes, "ip6tables is not installed: IPv6 rules were not read")
				continue
			}
			if r.err != nil && noIPv6() {
				notes = append(notes, "the kernel runs without IPv6: it has no IPv6 rules")
				continue
			}
		}
		if r.err != nil {
			return nil, nil, explain(f, r.err)
		}
		raws = append(raws, r.raws...)
		notes = append(notes, r.notes...)
	}
	TellVersions(raws, func(f host.Family) string {
		_, version := t.askRelease(ctx, f)
		return version
	})
	return raws, notes, nil
}

// TellVersions fills in the versions of rulesets without a table, and so
// without a header: both families of a backend come with one release. ask tells
// that of a family's plain iptables.
func TellVersions(raws []Raw, ask func(host.Family) string) {
	versions := map[host.Backend]string{}
	for _, r := range raws {
		if r.Version != "" {
			versions[r.Backend] = r.Version
		}
	}
	for i, r := range raws {
		if r.Version != "" {
			continue
		}
		if _, ok := versions[r.Backend]; !ok {
			versions[r.Backend] = ask(r.Family)
		}
		raws[i].Version = versions[r.Backend]
	}
}

func (t Tools) readFamily(ctx context.Context, f host.Family) ([]Raw, []string, error) {
	save := command(f) + "-save"
	backend := backendOf(save)
	raw := Raw{Family: f}
	if !t.NoNFT || backend != host.NFT {
		var err error
		if raw, err = t.save(ctx, f, save); err != nil {
			return nil, nil, err
		}
	}
	raw.Primary = true
	if backend != "" {
		raw.Backend = backend
	}
	if raw.Backend == "" {
		raw.Backend, raw.Version = t.askRelease(ctx, f)
	}

	var notes []string
	other, present, note := t.otherBackend(f, raw.Backend)
	if note != "" {
		notes = append(notes, note)
	}
	if !present {
		return []Raw{raw}, notes, nil
	}
	save = command(f) + "-" + string(other) + "-save"
	second, err := t.save(ctx, f, save)
	if errors.Is(err, exec.ErrNotFound) {
		notes = append(notes, fmt.Sprintf("the %s backend has %s tables, but %s is not installed: they were not read", other, f, save))
		return []Raw{raw}, notes, nil
	}
	if err != nil {
		return nil, nil, err
	}
	raws := []Raw{raw}
	if second.Text != "" || len(second.Incompatible) > 0 {
		second.Backend = other
		raws = append(raws, second)
	}
	return raws, notes, nil
}

// save runs an iptables-save and reads along.
func (t Tools) save(ctx context.Context, f host.Family, name string) (Raw, error) {
	p := newPrinted(f)
	rest, err := t.runner().Run(ctx, run.Cmd{Path: name, Follow: p.feed})
	if err != nil {
		return Raw{}, err
	}
	p.feed(rest)
	return p.raw(), nil
}

// ReadLegacy reads what the legacy backend has in the network namespace of
// the calling thread, which must be locked to it. It starts one process for
// each family that has tables.
func (t Tools) ReadLegacy(ctx context.Context) ([]Raw, error) {
	var raws []Raw
	for _, f := range host.Families {
		if !legacyTables(f) {
			continue
		}
		raw, err := t.save(ctx, f, command(f)+"-legacy-save")
		if errors.Is(err, exec.ErrNotFound) { // before 1.8 there is no other
			raw, err = t.save(ctx, f, command(f)+"-save")
		}
		if err != nil {
			return nil, explain(f, err)
		}
		raw.Backend = host.Legacy
		if raw.Text != "" {
			raws = append(raws, raw)
		}
	}
	return raws, nil
}

// command is the name of a family's iptables.
func command(f host.Family) string {
	if f == host.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// backendOf tells the backend of a command from the file that it is a link to,
// "" when that says nothing.
func backendOf(name string) host.Backend {
	path, err := run.LookPath(name)
	if err != nil {
		return ""
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return ""
	}
	return BackendOf(path)
}

// BackendOf tells the backend of a command from its file, links resolved; ""
// when that says nothing.
func BackendOf(path string) host.Backend {
	switch filepath.Base(path) {
	case "xtables-nft-multi":
		return host.NFT
	case "xtables-legacy-multi", "xtables-multi":
		return host.Legacy
	}
	return ""
}

// Printed is what a family's iptables-save has printed elsewhere, as Read would
// have it. Whether it is the primary one is for the caller to say.
func Printed(f host.Family, text []byte) Raw {
	p := newPrinted(f)
	p.feed(text)
	return p.raw()
}

// Version reads what iptables --version prints: "iptables v1.8.9 (nf_tables)".
// Releases before 1.8 have the legacy backend alone and do not name it.
func Version(text string) (host.Backend, string) {
	_, v, _ := strings.Cut(strings.TrimSpace(text), " v")
	v, mode, _ := strings.Cut(v, " ")
	if mode == "(nf_tables)" {
		return host.NFT, v
	}
	return host.Legacy, v
}

// header reads "# Generated by iptables-save v1.8.9 (nf_tables) on …", which
// stands above every table: none when there is no table. Without the
// parenthesis it is the legacy backend.
func header(line string) (host.Backend, string) {
	rest, ok := strings.CutPrefix(line, "# Generated by ")
	if !ok {
		return "", ""
	}
	_, rest, _ = strings.Cut(rest, "-save v")
	version, rest, _ := strings.Cut(rest, " ")
	if strings.HasPrefix(rest, "(nf_tables)") {
		return host.NFT, version
	}
	return host.Legacy, version
}

// otherBackend reports whether the backend that plain iptables does not speak
// to has tables, and a note when that cannot be told.
func (t Tools) otherBackend(f host.Family, primary host.Backend) (other host.Backend, present bool, note string) {
	if primary == host.NFT {
		return host.Legacy, legacyTables(f), ""
	}
	if t.NoNFT {
		return host.NFT, false, ""
	}
	present, err := nftTables(f)
	if err != nil {
		note = fmt.Sprintf("asking the kernel for its %s nftables failed (%v): rules of iptables-nft, if any, were not read", f, err)
	}
	return host.NFT, present, note
}

// legacyTables reports whether this network namespace has legacy tables
// (net/netfilter/x_tables.c). A kernel without them lacks the file.
func legacyTables(f host.Family) bool {
	name := map[host.Family]string{host.IPv4: "ip_tables_names", host.IPv6: "ip6_tables_names"}[f]
	names, _ := os.ReadFile("/proc/thread-self/net/" + name)
	return len(names) > 0
}

// nftTables reports whether nftables has a table that iptables-nft would make.
// Tables of other names and families are native nftables.
func nftTables(f host.Family) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, err
	}
	defer conn.CloseLasting()
	family := nftables.TableFamilyIPv4
	if f == host.IPv6 {
		family = nftables.TableFamilyIPv6
	}
	tables, err := conn.ListTablesOfFamily(family)
	if err != nil {
		return false, err
	}
	for _, t := range tables {
		switch t.Name {
		case "filter", "nat", "mangle", "raw", "security":
			return true, nil
		}
	}
	return false, nil
}

func noIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err != nil
}
