package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// fake is a whole host as a value: what the kernel and the disk would hold. It
// refuses what they would refuse. Each section, file and value changes as one,
// and fault is called before and after each.
type fake struct {
	tables  map[rulesKey]map[string]*xtables.TableModel
	files   map[string]host.File
	folders map[string]bool
	sysctls map[string]string
	buckets int64
	modules map[string]bool

	fault func(point string) error
	tests int
}

func newFake() *fake {
	return &fake{
		tables:  map[rulesKey]map[string]*xtables.TableModel{},
		files:   map[string]host.File{},
		folders: map[string]bool{"/etc": true},
		sysctls: map[string]string{},
		modules: map[string]bool{},
	}
}

// host is the fake behind the interfaces.
func (f *fake) host() *Host {
	return &Host{Rules: fakeRules{f}, Files: fakeFiles{f}, Kernel: fakeKernel{f}, Command: f.command}
}

// String prints everything that the host holds; equal strings are equal hosts.
func (f *fake) String() string {
	var b strings.Builder
	for _, family := range host.Families {
		for _, backend := range []host.Backend{host.NFT, host.Legacy} {
			tables := f.tables[rulesKey{family, backend}]
			for _, name := range slices.Sorted(maps.Keys(tables)) {
				fmt.Fprintf(&b, "%s %s *%s\n%s\n", family, backend, name, strings.Join(tables[name].Lines(), "\n"))
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(f.files)) {
		fmt.Fprintf(&b, "%+v\n", f.files[p])
	}
	fmt.Fprintln(&b, f.folders, f.sysctls, f.buckets, f.modules)
	return b.String()
}

func (f *fake) at(point string) error {
	if f.fault == nil {
		return nil
	}
	return f.fault(point)
}

// change runs one change that happens whole or not at all.
func (f *fake) change(what string, do func() error) error {
	if err := f.at("before " + what); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return f.at("after " + what)
}

// load gives a table rules, as lines of iptables-save.
func (f *fake) load(key rulesKey, table string, lines ...string) {
	if f.tables[key] == nil {
		f.tables[key] = map[string]*xtables.TableModel{}
	}
	rs := host.Ruleset{Tables: []host.Table{tableOf(xtables.TableLines{Name: table, Lines: lines})}}
	f.tables[key][table] = xtables.Model(rs, table)
}

type fakeRules struct{ *fake }

func (f fakeRules) Save(_ context.Context, family host.Family, b host.Backend) (host.Ruleset, error) {
	if err := f.at("save"); err != nil {
		return host.Ruleset{}, err
	}
	rs := host.Ruleset{Family: family, Backend: b}
	tables := f.tables[rulesKey{family, b}]
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		rs.Tables = append(rs.Tables, tableOf(xtables.TableLines{Name: name, Lines: tables[name].Lines()}))
	}
	return rs, nil
}

func (f fakeRules) Test(_ context.Context, family host.Family, b host.Backend, sections []change.Section) error {
	f.tests++
	return f.at("test")
}

func (f fakeRules) Commit(ctx context.Context, family host.Family, b host.Backend, sections []change.Section) error {
	key := rulesKey{family, b}
	for _, sec := range sections {
		err := f.change("section "+sec.Table, func() error {
			rs, _ := fakeRules{&fake{tables: f.tables}}.Save(ctx, family, b)
			m := xtables.Model(rs, sec.Table)
			for _, op := range sec.Ops {
				if err := refuse(m, op); err != nil {
					return err
				}
				m.Apply(op)
			}
			if f.tables[key] == nil {
				f.tables[key] = map[string]*xtables.TableModel{}
			}
			f.tables[key][sec.Table] = m
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// refuse says why iptables-restore would not take an operation.
func refuse(m *xtables.TableModel, op change.RuleOp) error {
	rules := m.Rules(op.Chain)
	switch {
	case op.Kind != change.SetChain && !m.Has(op.Chain):
		return fmt.Errorf("no chain %s", op.Chain)
	case op.Kind == change.InsertRule && (op.Pos < 1 || op.Pos > len(rules)+1):
		return fmt.Errorf("index of insertion %d of %s too big", op.Pos, op.Chain)
	case op.Kind == change.InsertRule && strings.HasPrefix(op.Rule, "-j CTPLAN-") && !m.Has(strings.TrimPrefix(op.Rule, "-j ")):
		return fmt.Errorf("no target %s", op.Rule)
	case op.Kind == change.DeleteRule && !slices.Contains(rules, op.Rule):
		return fmt.Errorf("bad rule: %s %s", op.Chain, op.Rule)
	case op.Kind == change.DropChain:
		for _, l := range m.Lines() {
			if strings.HasSuffix(l, "-j "+op.Chain) {
				return fmt.Errorf("chain %s is in use: %s", op.Chain, l)
			}
		}
	}
	return nil
}

func (f fakeRules) Replace(_ context.Context, family host.Family, b host.Backend, tables []xtables.TableLines) error {
	return f.change("replace", func() error {
		for _, t := range tables {
			f.load(rulesKey{family, b}, t.Name, t.Lines...)
		}
		return nil
	})
}

// command is the service of IPv4: a restart takes the rules away and unloads
// nf_conntrack, then brings the rules that /etc/rules.v4 says, which load it
// with what modprobe.d says.
func (f *fake) command(_ context.Context, words []string) error {
	if words[0] != "/etc/init.d/iptables" || words[1] != "restart" {
		return fmt.Errorf("%q is no service", words)
	}
	err := f.change("stop", func() error {
		f.load(v4, "filter", ":INPUT ACCEPT")
		delete(f.modules, "nf_conntrack")
		f.sysctls, f.buckets = map[string]string{}, 0
		return nil
	})
	if err != nil {
		return err
	}
	return f.change("start", func() error {
		f.load(v4, "filter", strings.Split(f.files["/etc/rules.v4"].Content, "\n")...)
		f.modules["nf_conntrack"] = true
		f.sysctls[maxKey], f.buckets = "65536", 65536
		if f.files["/etc/modprobe.d/netfilter.conf"].Exists {
			f.sysctls[maxKey], f.buckets = "1048576", 131072
		}
		return nil
	})
}

func (f fakeRules) Tables(family host.Family, b host.Backend) (map[string][]string, error) {
	found := map[string][]string{}
	for name, m := range f.tables[rulesKey{family, b}] {
		found[name] = builtinsOf(m)
	}
	return found, nil
}

func builtinsOf(m *xtables.TableModel) (names []string) {
	for _, l := range m.Lines() {
		if name, ok := strings.CutPrefix(l, ":"); ok && !strings.HasSuffix(l, " -") {
			name, _, _ = strings.Cut(name, " ")
			names = append(names, name)
		}
	}
	return names
}

func (f fakeRules) Trim(family host.Family, b host.Backend, before journal.TableBefore) error {
	m, ok := f.tables[rulesKey{family, b}][before.Name]
	if !ok || before.Existed || m.Canonical() != "" {
		return nil
	}
	return f.change("trim", func() error {
		delete(f.tables[rulesKey{family, b}], before.Name)
		return nil
	})
}

type fakeFiles struct{ *fake }

func (f fakeFiles) Read(path string) (host.File, error) {
	if file, ok := f.files[path]; ok {
		return file, nil
	}
	return host.File{Path: path}, nil
}

func (f fakeFiles) Write(before, after host.File) error {
	return f.change("write "+after.Path, func() error {
		now, _ := f.Read(after.Path)
		if now.Content != before.Content || now.Exists != before.Exists {
			return errors.New("the file has changed")
		}
		if !after.Exists {
			delete(f.files, after.Path)
			return nil
		}
		missing, _ := f.Missing(after.Path)
		for _, dir := range missing {
			f.folders[dir] = true
		}
		if now.Exists {
			now.Content = after.Content
			after = now
		}
		f.files[after.Path] = after
		return nil
	})
}

func (f fakeFiles) Missing(path string) (missing []string, _ error) {
	for dir := path[:strings.LastIndex(path, "/")]; dir != "" && !f.folders[dir]; dir = dir[:strings.LastIndex(dir, "/")] {
		missing = append(missing, dir)
	}
	return missing, nil
}

func (f fakeFiles) RemoveFolder(path string) error {
	for p := range f.files {
		if strings.HasPrefix(p, path+"/") {
			return nil
		}
	}
	delete(f.folders, path)
	return nil
}

type fakeKernel struct{ *fake }

func (f fakeKernel) Sysctl(key string) (string, error) {
	v, ok := f.sysctls[key]
	if !ok {
		return "", fmt.Errorf("%s: %w", key, fs.ErrNotExist)
	}
	return v, nil
}

func (f fakeKernel) SetSysctl(key, value string) error {
	return f.change("sysctl "+key, func() error {
		if _, err := f.Sysctl(key); err != nil {
			return err
		}
		if value == "" {
			return fmt.Errorf("%s: invalid argument", key)
		}
		f.sysctls[key] = value
		return nil
	})
}

func (f fakeKernel) Sysctls() (map[string]string, error) { return maps.Clone(f.sysctls), nil }

func (f fakeKernel) Hashsize() (int64, error) { return f.buckets, nil }

func (f fakeKernel) SetHashsize(n int64) error {
	return f.change("hashsize", func() error {
		f.buckets = n
		return nil
	})
}

func (f fakeKernel) Loaded(module string) (bool, error) { return f.modules[module], nil }

const maxKey = "net.netfilter.nf_conntrack_max"

// Load gives the module's values their defaults, and fails where modprobe.d
// has the module blocked, as modprobe does.
func (f fakeKernel) Load(_ context.Context, module string) error {
	return f.change("load "+module, func() error {
		for _, file := range f.files {
			if strings.Contains(file.Content, "install "+module+" /bin/false") {
				return fmt.Errorf("modprobe %s: install command failed", module)
			}
		}
		f.modules[module] = true
		if module == "nf_conntrack" {
			f.sysctls[maxKey], f.buckets = "65536", 65536
		}
		return nil
	})
}

func (f fakeKernel) UnloadUnused(ctx context.Context) error { return f.Unload(ctx, nfConntrack) }

func (f fakeKernel) Unload(_ context.Context, module string) error {
	return f.change("unload "+module, func() error {
		for user := range f.modules {
			if module == nfConntrack && strings.HasPrefix(user, "xt_") {
				return fmt.Errorf("rmmod %s: in use by %s", module, user)
			}
		}
		delete(f.modules, module)
		if module == "nf_conntrack" {
			delete(f.sysctls, maxKey)
			f.buckets = 0
		}
		return nil
	})
}
