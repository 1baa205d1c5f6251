package vmlab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// keyring verifies the archive (package debian-archive-keyring).
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// bundle is a set of Debian packages that is fetched and unpacked as one.
type bundle struct {
	name  string // of its folders in the cache
	suite string
	// packages to fetch. A name that ends in ":depends" means the one package
	// that the named one depends on, as a kernel's metapackage does.
	packages []string
	closure  bool // with everything that they depend on
	// required adds the packages that every Debian has (Debian policy 2.5, 3.8).
	required bool
}

var (
	qemuBundle = bundle{"qemu", "bookworm", []string{"qemu-system-x86"}, true, false}
	userBundle = bundle{"userland", "bookworm",
		[]string{"busybox-static", "bash", "kmod", "iptables", "nftables", "procps", "conntrack", "iproute2", "ipvsadm", "socat"}, true, false}
)

// pin is what was fetched for a bundle: file names with their SHA-256. It
// stays until the cache is removed, so tests run on the same bytes meanwhile.
type pin struct {
	Suite    string
	Packages map[string]string
}

// digest identifies a pin's content.
func (p pin) digest() string {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings alone
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}

// has is whether a pin is for these packages, which another release of the lab
// may not have asked for.
func (p pin) has(packages []string) bool {
	for _, name := range packages {
		if strings.HasSuffix(name, ":depends") {
			continue
		}
		found := false
		for file := range p.Packages {
			found = found || strings.HasPrefix(file, name+"_")
		}
		if !found {
			return false
		}
	}
	return true
}

// packages returns the folder with the bundle's packages. It fetches what is
// not in the cache, and checks the digest of what is.
func (c cache) packages(ctx context.Context, b bundle) (folder string, p pin, err error) {
	folder = c.path("packages", b.name)
	p, err = readPin(folder)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !p.has(b.packages) {
		p, err = c.fetchPatiently(ctx, b, folder)
	}
	if err != nil {
		err = fmt.Errorf("getting Debian packages (%s, for %s) into %s: %w", b.suite, b.name, folder, err)
	}
	return folder, p, err
}

// fetchPatiently tries again where a mirror is just being updated or the
// network stutters, beyond apt's own retries.
func (c cache) fetchPatiently(ctx context.Context, b bundle, folder string) (pin, error) {
	const tries = 3
	for try := 1; ; try++ {
		p, err := c.fetch(ctx, b, folder)
		if err == nil {
			return p, nil
		}
		if try == tries {
			return p, fmt.Errorf("after %d tries: %w", tries, err)
		}
		select {
		case <-ctx.Done():
			return p, err
		case <-time.After(time.Duration(try) * 5 * time.Second):
		}
	}
}

// unpacked returns the folder that the bundle's packages are unpacked in.
func (c cache) unpacked(ctx context.Context, b bundle) (string, error) {
	folder, p, err := c.packages(ctx, b)
	if err != nil {
		return "", err
	}
	tree := c.path("trees", b.name+"-"+p.digest())
	err = c.make(tree, func(tmp string) error {
		if err := os.Mkdir(tmp, 0o755); err != nil {
			return err
		}
		for name := range p.Packages {
			if err := command(ctx, "dpkg-deb", "-x", filepath.Join(folder, name), tmp).run(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("unpacking %s: %w", folder, err)
	}
	return tree, nil
}

// readPin reads what was fetched and checks it. The error is fs.ErrNotExist
// where nothing was.
func readPin(folder string) (pin, error) {
	var p pin
	text, err := os.ReadFile(filepath.Join(folder, "pin.json"))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return p, fmt.Errorf("reading %s: %w; remove the folder to fetch again", filepath.Join(folder, "pin.json"), err)
	}
	for name, want := range p.Packages {
		got, err := fileDigest(filepath.Join(folder, name))
		if err != nil {
			return p, fmt.Errorf("%w; remove %s to fetch again", errors.New(err.Error()), folder)
		}
		if got != want {
			return p, fmt.Errorf("%s in the cache has SHA-256 %s, and %s was fetched; remove %s to fetch again", name, got, want, folder)
		}
	}
	return p, nil
}

// fetch downloads the bundle's packages; apt verifies them.
func (c cache) fetch(ctx context.Context, b bundle, folder string) (pin, error) {
	p := pin{Suite: b.suite, Packages: map[string]string{}}
	config, err := c.aptConfig(b.suite)
	if err != nil {
		return p, err
	}
	if err := os.RemoveAll(folder); err != nil {
		return p, err
	}
	if err := os.MkdirAll(filepath.Join(folder, "partial"), 0o755); err != nil {
		return p, err
	}
	apt := func(dir string, args ...string) *cmd {
		r := command(ctx, args[0], args[1:]...)
		r.Dir = dir
		r.Env = append(os.Environ(), "APT_CONFIG="+config, "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
		return r
	}
	if err := apt("", "apt-get", "-q", "update", "--error-on=any").run(); err != nil {
		return p, err
	}
	var names []string
	for _, name := range b.packages {
		if meta, ok := strings.CutSuffix(name, ":depends"); ok {
			out, err := apt("", "apt-cache", "depends", "--important", meta).output()
			if err != nil {
				return p, err
			}
			_, after, ok := strings.Cut(out, "Depends: ")
			if name, _, _ = strings.Cut(after, "\n"); !ok || name == "" {
				return p, fmt.Errorf("package %s depends on nothing: %q", meta, out)
			}
		}
		names = append(names, name)
	}
	if b.required {
		available, err := apt("", "apt-cache", "dumpavail").output()
		if err != nil {
			return p, err
		}
		names = append(names, required(available)...)
	}
	get := []string{"apt-get", "-q", "download"}
	if b.closure {
		get = []string{"apt-get", "-q", "-y", "--download-only", "-o", "Dir::Cache::archives=" + folder, "install"}
	}
	if err := apt(folder, slices.Concat(get, names)...).run(); err != nil {
		return p, err
	}
	found, err := filepath.Glob(filepath.Join(folder, "*.deb"))
	if err != nil {
		return p, err
	}
	if len(found) < len(names) {
		return p, fmt.Errorf("apt-get ended well, and of %s there is only %q", strings.Join(names, ", "), found)
	}
	for _, file := range found {
		if p.Packages[filepath.Base(file)], err = fileDigest(file); err != nil {
			return p, err
		}
	}
	text, err := json.MarshalIndent(p, "", "\t")
	if err != nil {
		return p, err
	}
	return p, os.WriteFile(filepath.Join(folder, "pin.json"), append(text, '\n'), 0o644)
}

// required are the packages without which there is no Debian, by their
// paragraphs in deb822's form.
func required(available string) []string {
	var names []string
	for paragraph := range strings.SplitSeq(available, "\n\n") {
		if name, ok := strings.CutPrefix(paragraph, "Package: "); ok &&
			(strings.Contains(paragraph, "\nPriority: required\n") || strings.Contains(paragraph, "\nEssential: yes\n")) {
			name, _, _ = strings.Cut(name, "\n")
			names = append(names, name)
		}
	}
	return names
}

// aptConfig writes a configuration of apt that has everything of its own: one
// suite and its security updates, and a machine with nothing installed. It
// returns the value for APT_CONFIG.
func (c cache) aptConfig(suite string) (string, error) {
	folder := c.path("apt", suite)
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(folder, dir), 0o755); err != nil {
			return "", err
		}
	}
	sources := fmt.Sprintf("deb [signed-by=%[1]s] http://deb.debian.org/debian %[2]s main\n"+
		"deb [signed-by=%[1]s] http://deb.debian.org/debian-security %[2]s-security main\n", keyring, suite)
	config := fmt.Sprintf(`Dir::State %[1]q;
Dir::State::status %[2]q;
Dir::Cache %[3]q;
Dir::Etc::sourcelist %[4]q;
Dir::Etc::sourceparts "-";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
`, filepath.Join(folder, "state"), filepath.Join(folder, "state/status"), filepath.Join(folder, "cache"), filepath.Join(folder, "sources.list"))
	file := filepath.Join(folder, "apt.conf")
	return file, errors.Join(
		os.WriteFile(filepath.Join(folder, "state/status"), nil, 0o644),
		os.WriteFile(filepath.Join(folder, "sources.list"), []byte(sources), 0o644),
		os.WriteFile(file, []byte(config), 0o644))
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// cmd is a command whose failure tells what it printed.
type cmd struct{ *exec.Cmd }

func command(ctx context.Context, name string, args ...string) *cmd {
	return &cmd{exec.CommandContext(ctx, name, args...)}
}

func (c *cmd) run() error {
	_, err := c.output()
	return err
}

func (c *cmd) output() (string, error) {
	var stdout, stderr strings.Builder
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(c.Args, " "), err, tail(stdout.String()), tail(stderr.String()))
	}
	return stdout.String(), nil
}

// tail is the end of a text, where it says what went wrong.
func tail(s string) string {
	const most = 4000
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}
