package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
	"github.com/ctplan/ctplan/providers/boot"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/initscript"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/kmod"
	"github.com/ctplan/ctplan/providers/nft"
	"github.com/ctplan/ctplan/providers/sysctl"
)

// Options say what to read.
type Options struct {
	Root        string         // prefix of all paths, for tests; "" on a real host
	Runner      run.Runner     // nil: run.Exec
	Files       declared.Files // paths that the HCL names
	InitScripts []string       // the same; nil: the usual ones
}

// Read reads the host.
func Read(ctx context.Context, o Options) (*Snapshot, error) {
	r, err := Start(ctx, o.Root, o.Runner)
	if err != nil {
		return nil, err
	}
	return r.Finish(o.Files, o.InitScripts)
}

// Reader reads a host in two parts. Start knows the facts that the HCL is
// evaluated with, while the rules are still being read; Finish reads the files,
// whose paths the HCL may name.
type Reader struct {
	root  string
	noNFT bool // nf_tables is not loaded
	nft   func(*Snapshot)
	s     Snapshot
	rules <-chan rulesResult
	rest  <-chan restResult
	other <-chan othersResult
}

type rulesResult struct {
	raws  []iptables.Raw
	notes []string
	err   error
}

type restResult struct {
	sysctls map[string]host.Sysctl
	trees   []host.ModuleTree
	notes   []string
}

// Start begins to read the host under root. Cancelling ctx stops the commands
// that are still running; a Reader that is not finished needs that.
func Start(ctx context.Context, root string, runner run.Runner) (*Reader, error) {
	rules := make(chan rulesResult, 1)
	noNFT := lacksNFT(root)
	go func() {
		raws, notes, err := iptables.Tools{Runner: runner, NoNFT: noNFT}.Read(ctx)
		rules <- rulesResult{raws, notes, err}
	}()
	// The commands start now, not when this goroutine first waits for something.
	runtime.Gosched()
	r := &Reader{root: root, noNFT: noNFT, nft: (*Snapshot).readNFT, rules: rules, s: Snapshot{FormatVersion: planner.FormatVersion}}
	var err error
	if r.s.Host, err = readHost(root); err != nil {
		return nil, err
	}
	if r.s.Conntrack, err = kmod.ReadConntrack(root); err != nil {
		return nil, err
	}
	rest := make(chan restResult, 1)
	r.rest = rest
	go func() { rest <- readRest(root) }()
	others := make(chan othersResult, 1)
	r.other = others
	go func() { others <- readOthers(ctx, root, runner, r.s.Conntrack, noNFT) }()
	return r, nil
}

// readRest reads what the rules do not wait for.
func readRest(root string) restResult {
	values, err := sysctl.ReadKeys(root, nil)
	beside := sysctl.ReadBeside(root)
	for _, key := range []string{host.SysctlBridged4, host.SysctlBridged6} {
		if beside[key].Value == "1" && !flows.Bridged(root) {
			delete(beside, key) // it is at work for nothing
		}
	}
	maps.Copy(values, beside)
	return restResult{values, kmod.ReadTrees(root), note(err, "what depends on it is not planned")}
}

// lacksNFT reports whether nf_tables is not loaded: to ask it would load it,
// or be refused. Where the host's files do not tell, nothing can be loaded, and
// the kernel is asked.
func lacksNFT(root string) bool {
	there, known := kmod.There(root, "nf_tables")
	if known {
		return !there
	}
	return root == "" && !nft.Answers()
}

// legacyTables reports whether iptables-legacy has rules in the kernel, which
// nothing can read without it.
func legacyTables(root string) bool {
	for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
		if data, err := os.ReadFile(root + "/proc/net/" + name); err == nil && len(data) > 0 {
			return true
		}
	}
	return false
}

// madeByIptables reports whether a table looks like one of iptables-nft, which has
// to be written through it.
func madeByIptables(t host.NFTTable) bool {
	return (t.Family == "ip" || t.Family == "ip6") && slices.Contains(builtinTables, t.Name) && slices.ContainsFunc(t.Chains, func(c host.NFTChain) bool {
		return c.Base() && c.Name == strings.ToUpper(c.Hook)
	})
}

// Host is who the host is.
func (r *Reader) Host() host.Host { return r.s.Host }

// Conntrack is the state of nf_conntrack.
func (r *Reader) Conntrack() host.Conntrack { return r.s.Conntrack }

// Finish reads the rest and returns the snapshot. It is to be called once.
func (r *Reader) Finish(files declared.Files, initScripts []string) (*Snapshot, error) {
	s := &r.s
	var err error
	if s.Modules, err = kmod.ReadModules(r.root); err != nil {
		return nil, err
	}
	s.Loading = kmod.ReadLoading(r.root, modules.Used, !r.noNFT)
	starts := boot.Read(r.root)
	starts.NFTables = nft.Mains(r.root)
	s.Boot = &starts
	if err := r.readFiles(files, initScripts); err != nil {
		return nil, err
	}
	rest := <-r.rest
	s.Sysctls, s.Trees = rest.sysctls, rest.trees
	s.Notes = append(s.Notes, rest.notes...)
	s.readAddresses(r.root, flows.Addresses)

	rules := <-r.rules
	missing := errors.Is(rules.err, iptables.ErrNotInstalled)
	if rules.err != nil && !missing {
		return nil, rules.err
	}
	for _, raw := range rules.raws {
		s.Rules = append(s.Rules, newRules(raw))
	}
	if !r.noNFT {
		r.nft(s)
	}
	// Where iptables has nothing either, nftables needs no program.
	if missing && (legacyTables(r.root) || s.NFTUnread != "" || slices.ContainsFunc(s.NFT, madeByIptables)) {
		return nil, rules.err
	}
	others := <-r.other
	s.Namespaces = others.list
	s.Notes = append(s.Notes, others.notes...)
	s.Notes = append(s.Notes, rules.notes...)
	for i, n := range s.Notes {
		s.Notes[i] = strings.ToValidUTF8(n, "\uFFFD")
	}
	return s, nil
}

// readAddresses reads the host's addresses where it routes. They are those of
// the running kernel, not of files.
func (s *Snapshot) readAddresses(root string, read func() ([]host.Address, error)) {
	live := host.Live{Sysctls: s.Sysctls}
	if root != "" || !live.Routes(host.IPv4) && !live.Routes(host.IPv6) {
		return
	}
	list, err := read()
	if err != nil {
		s.Notes = append(s.Notes, note(err, "what is for this host and what it routes cannot be told apart everywhere")...)
		return
	}
	s.Addresses = []netip.Prefix{}
	for _, a := range list {
		s.Addresses = append(s.Addresses, a.Prefix)
	}
	slices.SortFunc(s.Addresses, netip.Prefix.Compare)
	s.Addresses = slices.Compact(s.Addresses)
}

// readFiles reads every file that boot reads and that can hold connection
// tracking up.
func (r *Reader) readFiles(files declared.Files, initScripts []string) error {
	type group struct {
		kind  Kind
		files []hostfile.Conf
		err   error
	}
	collect := func(kind Kind, files []hostfile.Conf, err error) group { return group{kind, files, err} }
	plain := func(paths ...string) (files []hostfile.Conf) {
		for _, p := range paths {
			files = append(files, hostfile.Conf{Path: p})
		}
		return files
	}
	sysctls, err := sysctl.Paths(r.root, files.Sysctl)
	groups := []group{collect(KindSysctl, sysctls, err)}
	modprobe, err := kmod.ModprobePaths(r.root, files.Modprobe)
	groups = append(groups, collect(KindModprobe, modprobe, err))
	load, err := kmod.ModulesLoadPaths(r.root, files.ModulesLoad)
	groups = append(groups, collect(KindModulesLoad, load, err))
	scripts, err := initscript.Paths(r.root, initScripts)
	groups = append(groups, collect(KindInitScript, plain(scripts...), err))
	configs, err := initscript.ConfigPaths(r.root)
	groups = append(groups, collect(KindInitConfig, plain(configs...), err))
	onBoot, err := kmod.ScriptPaths(r.root)
	groups = append(groups, collect(KindScript, plain(onBoot...), err))
	groups = append(groups, collect(KindInitramfs, plain(kmod.InitramfsPaths(r.root)...), nil))
	native, err := nft.ConfPaths(r.root, r.s.Boot.NFTables)
	groups = append(groups, collect(KindNFTables, plain(native...), err))
	for _, saved := range iptables.SavedPaths(r.root, files, r.s.Boot.Restorers) {
		groups = append(groups, collect(savedKind(saved.Family), plain(saved.Path), nil))
	}

	// These ctplan may have to write, so it must be able to read them. Of the
	// others it only wants to know.
	ours := []string{
		cmp.Or(files.Sysctl, etc.DefaultSysctlFile),
		cmp.Or(files.Modprobe, etc.DefaultModprobeFile),
		cmp.Or(files.ModulesLoad, etc.DefaultModulesLoadFile),
	}
	for _, g := range groups {
		r.s.Notes = append(r.s.Notes, note(g.err, "what stands there is not taken into account")...)
		for _, c := range g.files {
			f, err := hostfile.Read(r.root, c.Path)
			dropIn := slices.Contains([]Kind{KindSysctl, KindModprobe, KindModulesLoad, KindScript, KindInitramfs, KindNFTables}, g.kind)
			if err != nil && dropIn && !slices.Contains(ours, c.Path) {
				r.s.Notes = append(r.s.Notes, note(err, "what it sets is not taken into account")...)
				continue
			}
			if err != nil {
				return err
			}
			r.s.Files = append(r.s.Files, File{g.kind, f, c.As})
		}
	}
	return nil
}

func savedKind(f host.Family) Kind {
	if f == host.IPv6 {
		return KindRulesV6
	}
	return KindRulesV4
}

// note makes a note of each line of an error.
func note(err error, consequence string) []string {
	if err == nil {
		return nil
	}
	var notes []string
	for text := range strings.SplitSeq(err.Error(), "\n") {
		notes = append(notes, fmt.Sprintf("%s: %s", text, consequence))
	}
	return notes
}

// For returns the snapshot as Read would have taken it for these paths: where
// the HCL names the init scripts or rules files, the ones found by themselves
// do not count.
func (s *Snapshot) For(files declared.Files, initScripts []string) *Snapshot {
	named := map[Kind][]string{}
	if initScripts != nil {
		named[KindInitScript] = initScripts
	}
	if files.RulesV4 != "" {
		named[KindRulesV4] = []string{files.RulesV4}
	}
	if files.RulesV6 != "" {
		named[KindRulesV6] = []string{files.RulesV6}
	}
	if len(named) == 0 {
		return s
	}
	out := *s
	out.Files = slices.DeleteFunc(slices.Clone(s.Files), func(f File) bool {
		paths, ok := named[f.Kind]
		return ok && !slices.Contains(paths, f.File.Path)
	})
	return &out
}

// Missing returns the paths that the HCL names and the snapshot does not hold.
func (s *Snapshot) Missing(files declared.Files, initScripts []string) []string {
	wanted := map[string]bool{}
	for _, p := range slices.Concat(initScripts, []string{files.Sysctl, files.Modprobe, files.ModulesLoad, files.RulesV4, files.RulesV6}) {
		if p != "" {
			wanted[p] = true
		}
	}
	for _, f := range s.Files {
		delete(wanted, f.File.Path)
	}
	return slices.Sorted(maps.Keys(wanted))
}
