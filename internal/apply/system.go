package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/kmod"
	"github.com/ctplan/ctplan/providers/nft"
	"github.com/ctplan/ctplan/providers/sysctl"
)

// NewHost is the machine that ctplan runs on. Files and values are looked for
// under root, "" on a real host.
func NewHost(root string) *Host {
	r := &holder{limit: childTime}
	return &Host{
		Rules:  systemRules{iptables.Tools{Runner: r}, r},
		Native: systemNative{},
		Files:  systemFiles{root},
		Kernel: systemKernel{root, r},
		Command: func(ctx context.Context, words []string) error {
			_, err := r.Run(ctx, run.Cmd{Path: words[0], Args: words[1:]})
			return err
		},
		CheckFiles: func(ctx context.Context, edited []host.File) error { return nft.CheckConf(ctx, r, root, edited) },
		Hold:       r.hold,
		Apart:      apart,
	}
}

// childTime is how long one command may take that a transaction starts, where
// nothing else bounds it: iptables-restore takes seconds for 100,000 rules.
const childTime = time.Minute

// holder runs commands, makes them keep a file open, and ends those that do not
// end.
type holder struct {
	mu    sync.Mutex
	file  *os.File
	limit time.Duration
}

func (h *holder) hold(f *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.file = f
}

// Run implements run.Runner.
func (h *holder) Run(ctx context.Context, c run.Cmd) ([]byte, error) {
	h.mu.Lock()
	e := run.Exec{Keep: h.file}
	h.mu.Unlock()
	if _, bounded := ctx.Deadline(); bounded {
		return e.Run(ctx, c)
	}
	ctx, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	out, err := e.Run(ctx, c)
	if errors.Is(err, context.DeadlineExceeded) {
		return out, fmt.Errorf("%s had not ended after %s, and was ended", path.Base(c.Path), h.limit)
	}
	return out, err
}

// systemRules are the rules in the kernel.
type systemRules struct {
	iptables.Tools
	runner run.Runner
}

func (r systemRules) Save(ctx context.Context, f host.Family, b host.Backend) (host.Ruleset, error) {
	name := saveCommand(f, b)
	out, err := r.runner.Run(ctx, run.Cmd{Path: name})
	if err != nil {
		return host.Ruleset{}, fmt.Errorf("reading the %s rules: %w", f, err)
	}
	rs, err := iptables.Parse(f, string(out))
	rs.Backend = b
	return rs, err
}

// saveCommand is the command that saves a family through a backend: the one
// named after the backend, which releases before 1.8 do not have.
func saveCommand(f host.Family, b host.Backend) string {
	name := "iptables"
	if f == host.IPv6 {
		name = "ip6tables"
	}
	if exact := fmt.Sprintf("%s-%s-save", name, b); exists(exact) {
		return exact
	}
	return name + "-save"
}

func exists(command string) bool {
	_, err := run.LookPath(command)
	return err == nil
}

func (systemRules) Tables(f host.Family, b host.Backend) (map[string][]string, error) {
	if b != host.NFT {
		return nil, nil
	}
	return nftTables(f)
}

func (systemRules) Trim(f host.Family, b host.Backend, before journal.TableBefore) error {
	if b != host.NFT {
		return nil
	}
	return nftTrim(f, before)
}

// systemFiles are the files under root.
type systemFiles struct{ root string }

func (s systemFiles) Read(path string) (host.File, error) { return hostfile.Read(s.root, path) }

func (s systemFiles) Write(before, after host.File) error {
	return hostfile.Write(s.root, before, after)
}

func (s systemFiles) Missing(name string) ([]string, error) {
	var missing []string
	for dir := path.Dir(name); dir != "/" && dir != "."; dir = path.Dir(dir) {
		_, err := os.Stat(filepath.Join(s.root, dir))
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		missing = append(missing, dir)
	}
	return missing, nil
}

func (s systemFiles) RemoveFolder(name string) error {
	err := os.Remove(filepath.Join(s.root, name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}

// systemKernel is the running kernel, as far as connection tracking goes.
type systemKernel struct {
	root   string
	runner run.Runner
}

func (k systemKernel) Sysctl(key string) (string, error) {
	values, err := sysctl.ReadKeys(k.root, []string{key})
	if err != nil {
		return "", err
	}
	v, ok := values[key]
	if !ok {
		return "", fmt.Errorf("reading sysctl %s: %w", key, fs.ErrNotExist)
	}
	return v.Value, nil
}

func (k systemKernel) SetSysctl(key, value string) error { return sysctl.Write(k.root, key, value) }

func (k systemKernel) Sysctls() (map[string]string, error) {
	values, err := sysctl.ReadKeys(k.root, nil)
	if err != nil {
		return nil, err
	}
	settable := map[string]string{}
	for key, v := range values {
		if v.Writable {
			settable[key] = v.Value
		}
	}
	return settable, nil
}

func (k systemKernel) Hashsize() (int64, error) {
	c, err := kmod.ReadConntrack(k.root)
	return c.Hashsize, err
}

func (k systemKernel) SetHashsize(buckets int64) error { return kmod.SetHashsize(k.root, buckets) }

func (k systemKernel) Loaded(module string) (bool, error) {
	loaded, err := kmod.ReadModules(k.root)
	return slices.ContainsFunc(loaded, func(m host.Module) bool { return m.Name == module }), err
}

func (k systemKernel) Load(ctx context.Context, module string) error {
	return kmod.Load(ctx, k.runner, k.root, module)
}

// settling is how long a module may stay in use by what has just gone: nft
// frees rules a moment after they were deleted.
const settling = time.Second

func (k systemKernel) UnloadUnused(ctx context.Context) error {
	for deadline := time.Now().Add(settling); ; time.Sleep(settling / 10) {
		loaded, err := kmod.ReadModules(k.root)
		if err != nil {
			return err
		}
		used := false
		for _, m := range loaded { // what was loaded last, and so stands on the others, first
			if !modules.IsConntrack(m.Name) {
				continue
			}
			if m.Refs > 0 {
				used = true
			} else if err := k.Unload(ctx, m.Name); err != nil {
				return err
			}
		}
		if !used || time.Now().After(deadline) {
			return nil
		}
	}
}

func (k systemKernel) Unload(ctx context.Context, module string) error {
	// A chain of type nat holds its module, also when it is empty, and
	// iptables-nft never deletes its own. They treat no packet, and come back
	// with the next rule.
	if strings.HasPrefix(module, "nft_chain_nat") {
		for _, f := range host.Families {
			if err := nftTrim(f, journal.TableBefore{Name: "nat"}); err != nil {
				return err
			}
		}
	}
	return kmod.Unload(ctx, k.runner, k.root, module)
}
