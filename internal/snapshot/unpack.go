package snapshot

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/kmod"
	"github.com/ctplan/ctplan/providers/servers"
)

// readArchive reads the host that a script has printed, by what reads a host: the
// files are laid out in a folder that goes again.
func readArchive(data []byte) (*Snapshot, error) {
	a, err := parseArchive(data)
	if err != nil {
		return nil, fmt.Errorf("not the output of ctplan's snapshot script: %w", err)
	}
	return a.read(declared.Files{}, nil)
}

// ByScript reports whether a script took the snapshot.
func (s *Snapshot) ByScript() bool { return s.Archive != nil }

// With is the snapshot as it would have been taken for the paths that the HCL
// names: one that a script took is read again. What the script has not taken is
// not in it.
func (s *Snapshot) With(files declared.Files, initScripts []string) (*Snapshot, error) {
	if s.Archive == nil || files == (declared.Files{}) && initScripts == nil {
		return s, nil
	}
	out, err := s.Archive.read(files, initScripts)
	if err != nil {
		return nil, err
	}
	out.Files = slices.DeleteFunc(out.Files, func(f File) bool {
		named := slices.Contains(append([]string{files.Sysctl, files.Modprobe, files.ModulesLoad, files.RulesV4, files.RulesV6}, initScripts...), f.File.Path)
		return named && !s.Archive.holds(f.File.Path)
	})
	return out, nil
}

func (a *Archive) read(files declared.Files, initScripts []string) (*Snapshot, error) {
	root, err := os.MkdirTemp("", "ctplan-snapshot-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(root)
	if err := a.unpack(root); err != nil {
		return nil, fmt.Errorf("laying out the files of the snapshot: %w", err)
	}
	s, err := a.readUnpacked(root, files, initScripts)
	if err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), root, ""))
	}
	for i := range s.Notes {
		s.Notes[i] = strings.ReplaceAll(s.Notes[i], root, "")
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("not a valid snapshot: %w", err)
	}
	s.Archive = a
	return s, nil
}

// unpack lays out files and links under root. No link leads out of it: each is
// made relative, from where its folder really is.
func (a *Archive) unpack(root string) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	inside := func(name string) string { return strings.TrimPrefix(path.Clean(name), "/") }
	folder := func(name string) (string, error) {
		real, err := hostfile.Real(root, path.Dir(name))
		if err != nil {
			return "", err
		}
		return real, dir.MkdirAll(cmp.Or(inside(real), "."), 0o700)
	}
	links := slices.Collect(maps.Keys(a.links))
	slices.SortFunc(links, func(x, y string) int { return cmp.Or(len(x)-len(y), strings.Compare(x, y)) })
	for _, name := range links {
		real, err := folder(name)
		if err != nil {
			return err
		}
		to := path.Join(real, a.links[name])
		if path.IsAbs(a.links[name]) {
			to = path.Clean(a.links[name])
		}
		relative, err := filepath.Rel(real, to)
		if err != nil {
			return err
		}
		if err := dir.Symlink(relative, inside(path.Join(real, path.Base(name)))); err != nil {
			return err
		}
	}
	put := func(name string, content []byte, mode uint32) error {
		real, err := folder(name)
		if err != nil {
			return err
		}
		at := inside(path.Join(real, path.Base(name)))
		if info, err := dir.Lstat(at); err == nil && !info.Mode().IsRegular() {
			return nil // of a folder or link is known already what there is
		}
		return dir.WriteFile(at, content, os.FileMode(mode&0o777|0o600))
	}
	for name, f := range a.files {
		at := name
		if rest, ok := strings.CutPrefix(name, "/proc/net/"); ok {
			if err := put("/proc/thread-self/net/"+rest, f.body, f.mode); err != nil {
				return err
			}
		}
		if err := put(at, f.body, f.mode); err != nil {
			return err
		}
	}
	slices.Sort(a.there)
	for i, name := range a.there {
		if isFolder := i+1 < len(a.there) && strings.HasPrefix(a.there[i+1], name+"/") || strings.HasPrefix(name, "/sys/module/") && strings.Count(name, "/") == 3 || strings.HasSuffix(name, ".d"); isFolder {
			if _, err := folder(name + "/x"); err != nil {
				return err
			}
			continue
		}
		if err := put(name, nil, 0o600); err != nil {
			return err
		}
	}
	// Modes last: the sysctls that nobody may write tell so by theirs.
	for name, f := range a.files {
		if strings.HasPrefix(name, "/proc/sys/") || strings.HasPrefix(name, "/sys/") {
			if err := dir.Chmod(inside(name), os.FileMode(f.mode&0o777|0o400)); err != nil {
				return err
			}
		}
	}
	return nil
}

// readUnpacked reads the host whose files lie under root.
func (a *Archive) readUnpacked(root string, files declared.Files, initScripts []string) (*Snapshot, error) {
	there, known := kmod.There(root, "nf_tables")
	tables := a.output("nft list tables")
	if !known {
		there = tables != nil || len(a.output("iptables-nft-save")) > 0
	}
	rules, rest, others := make(chan rulesResult, 1), make(chan restResult, 1), make(chan othersResult, 1)
	r := &Reader{root: root, noNFT: !there, rules: rules, rest: rest, other: others, s: Snapshot{FormatVersion: planner.FormatVersion}}
	s := &r.s
	var err error
	if s.Host, err = a.host(root); err != nil {
		return nil, err
	}
	if s.Conntrack, err = kmod.ReadConntrack(root); err != nil {
		return nil, err
	}
	raws, notes, err := a.rules(!there)
	rules <- rulesResult{raws, notes, err}
	settings := readRest(root)
	if a.readOnly("/proc/sys/net") {
		for key, v := range settings.sysctls {
			settings.sysctls[key] = host.Sysctl{Value: v.Value}
		}
	}
	rest <- settings
	others <- othersResult{notes: a.namespaces(s.Conntrack)}
	r.nft = func(s *Snapshot) { a.nft(s, tables) }
	if _, err := r.Finish(files, initScripts); err != nil {
		return nil, err
	}
	a.describe(s)
	s.readConnections(flows.Options{Root: root, Recorded: a.connections()})
	if s.Connections.Addresses != nil {
		s.readAddresses("", func() ([]host.Address, error) { return s.Connections.Addresses, nil })
	}
	s.Connections.Servers = servers.Read(root)
	if slices.ContainsFunc(s.Rules, func(r Rules) bool { return strings.Contains(r.Text, "--match-set ") }) {
		s.Notes = append(s.Notes, "the snapshot script reads no ipsets: what rules with them do is not known")
	}
	return s, nil
}

// host is readHost, without what only a program can ask.
func (a *Archive) host(root string) (host.Host, error) {
	h, err := readHost(root)
	if err != nil {
		return h, err
	}
	size := strings.Fields(string(a.output("sed -n /^KernelPageSize/p /proc/self/smaps")))
	h.PageSize = 0
	if len(size) >= 3 {
		n, _ := strconv.ParseInt(size[1], 10, 32)
		h.PageSize = n << 10
	}
	if h.PointerSize = 4; is64(strings.TrimSpace(string(a.output("uname -m")))) {
		h.PointerSize = 8
	}
	if h.PageSize == 0 {
		return h, errors.New("/proc/self/smaps of the host did not tell its page size")
	}
	if _, ok := a.files["/sys/devices/system/cpu/online"]; !ok {
		return h, errors.New("/sys of the host did not tell how many CPUs it has")
	}
	return h, nil
}

// rules is what iptables.Tools.Read makes of the same.
func (a *Archive) rules(noNFT bool) (raws []iptables.Raw, notes []string, err error) {
	for _, f := range host.Families {
		tool := toolOf[f]
		program, installed := a.runs["program "+tool+"-save"]
		if !installed {
			if f == host.IPv4 {
				return nil, nil, fmt.Errorf("%w on the host of the snapshot: %s-save", iptables.ErrNotInstalled, tool)
			}
			notes = append(notes, "ip6tables is not installed: IPv6 rules were not read")
			continue
		}
		backend := iptables.BackendOf(strings.TrimSpace(string(program.body)))
		named, _ := a.release(tool)
		primary := iptables.Raw{Family: f}
		if text := a.output(tool + "-save"); text != nil {
			primary = iptables.Printed(f, text)
		} else if !(noNFT && cmp.Or(backend, named) == host.NFT) {
			if _, ok := a.files["/proc/sys/net/ipv6"]; f == host.IPv6 && !ok && !slices.Contains(a.there, "/proc/sys/net/ipv6") {
				notes = append(notes, "the kernel runs without IPv6: it has no IPv6 rules")
				continue
			}
			return nil, nil, fmt.Errorf("%s-save failed on the host of the snapshot", tool)
		}
		primary.Primary = true
		primary.Backend = cmp.Or(backend, primary.Backend, named)
		raws = append(raws, primary)
		other := host.NFT
		if primary.Backend == host.NFT {
			other = host.Legacy
		}
		second := iptables.Printed(f, a.output(fmt.Sprintf("%s-%s-save", tool, other)))
		if second.Text != "" || len(second.Incompatible) > 0 {
			second.Backend = other
			raws = append(raws, second)
		}
		names := a.files["/proc/net/"+strings.TrimSuffix(tool, "tables")+"_tables_names"]
		if _, has := a.runs[fmt.Sprintf("program %s-legacy-save", tool)]; other == host.Legacy && !has && len(names.body) > 0 {
			notes = append(notes, fmt.Sprintf("the %s backend has %s tables, but %s-legacy-save is not installed: they were not read", other, f, tool))
		}
	}
	iptables.TellVersions(raws, func(f host.Family) string {
		_, version := a.release(toolOf[f])
		return version
	})
	return raws, notes, nil
}

// toolOf is a family's iptables.
var toolOf = map[host.Family]string{host.IPv4: "iptables", host.IPv6: "ip6tables"}

// release is the release that a command and its save say they are of. The save of
// releases before 1.8 does not tell.
func (a *Archive) release(tool string) (host.Backend, string) {
	if b, v := iptables.Version(string(a.output(tool + "-save --version"))); v != "" {
		return b, v
	}
	return iptables.Version(string(a.output(tool + " --version")))
}

// nft says of the tables of nftables what can be said: nothing where nft lists
// none but those that the rules hold. Else what they do is not known.
func (a *Archive) nft(s *Snapshot, tables []byte) {
	unread := func(why string) {
		s.NFTUnread = why
		s.Notes = append(s.Notes, why+": rules of native nftables are not taken into account")
	}
	if tables == nil {
		unread("the host has nftables in its kernel and no nft that lists them")
		return
	}
	for line := range strings.Lines(string(tables)) {
		w := strings.Fields(line) // "table ip filter"
		if len(w) < 3 || slices.Contains(builtinTables, w[2]) && slices.ContainsFunc(s.Rules, func(r Rules) bool {
			return r.Backend == host.NFT && w[1] == nftFamily[r.Family] && !slices.Contains(r.Incompatible, w[2])
		}) {
			continue
		}
		unread(fmt.Sprintf("the snapshot script cannot read the rules of native nftables, such as table %s %s", w[1], w[2]))
		return
	}
}

// namespaces says that others were not read, where their rules matter.
func (a *Archive) namespaces(c host.Conntrack) []string {
	if c.Kind != host.ConntrackModule || !c.Loaded || bytes.Count(a.runs["run namespaces"].body, []byte("\n")) < 2 {
		return nil
	}
	return []string{"the snapshot script reads no other network namespaces, of which there are some: rules there are not taken into account"}
}

// readOnly reports whether a path lies on what is mounted read-only.
func (a *Archive) readOnly(name string) bool {
	longest, out := -1, false
	for line := range strings.Lines(string(a.files["/proc/mounts"].body)) {
		w := strings.Fields(line)
		if len(w) < 4 || !(w[1] == "/" || name == w[1] || strings.HasPrefix(name, w[1]+"/")) || len(w[1]) < longest {
			continue
		}
		longest, out = len(w[1]), slices.Contains(strings.Split(w[3], ","), "ro")
	}
	return out
}

// describe gives the files the owners, modes and attributes that they have on
// the host.
func (a *Archive) describe(s *Snapshot) {
	unread := 0
	for i := range s.Files {
		f := &s.Files[i].File
		if !f.Exists {
			continue
		}
		real := cmp.Or(f.Target, f.Path)
		had := a.files[real]
		f.Mode, f.UID, f.GID, f.Xattrs = had.mode, had.uid, had.gid, nil
		text, ok := a.attrs[real]
		if !ok {
			unread++
			continue
		}
		f.Xattrs = parseAttributes(string(text))
	}
	if unread > 0 {
		s.Notes = append(s.Notes, "the host has no getfattr: extended attributes of its files were not read, such as their SELinux contexts")
	}
}

// parseAttributes reads `NAME=0xVALUE`, as getfattr -e hex prints it, into values
// in base64.
func parseAttributes(text string) map[string]string {
	var out map[string]string
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if name == "security.ima" || name == "security.evm" || strings.HasPrefix(name, "#") {
			continue
		}
		b, err := hex.DecodeString(strings.TrimPrefix(value, "0x"))
		if !ok || err != nil {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = base64.StdEncoding.EncodeToString(b)
	}
	return out
}

func (a *Archive) connections() *flows.Recorded {
	return &flows.Recorded{
		Addresses: a.output("ip -o addr show"),
		Routes:    [2][]byte{a.output("ip -o -4 route show table main"), a.output("ip -o -6 route show table main")},
		Rules:     [2][]byte{a.output("ip -4 rule show"), a.output("ip -6 rule show")},
		Sessions:  a.runs["run sessions"].body,
	}
}
