package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/internal/textdiff"
	live "github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
)

// Exit statuses of ctplan.
const (
	exitOK      = 0
	exitError   = 1
	exitChanges = 2
	exitBlocked = 3
)

var backends = []live.Backend{live.NFT, live.Legacy}

// built is the binary under test; TestMain fills it in.
var built string

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		os.Exit(runChild(name, os.Args[1:]))
	}
	if os.Geteuid() == 0 && len(flows.Reached("")) > 0 {
		os.Exit(apart())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "ctplan-e2e")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		built = filepath.Join(dir, "ctplan")
		build := exec.Command("go", "build", "-buildvcs=false", "-o", built, "github.com/ctplan/ctplan/cmd/ctplan")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "building ctplan: %v\n", err)
			return 1
		}
		return m.Run()
	}())
}

// apart runs the tests again as if nobody had come over SSH, whose connection
// ctplan would find above them: among processes of their own.
func apart() int {
	cmd := exec.Command("unshare", slices.Concat([]string{"--pid", "--fork", "--kill-child", "--mount-proc", os.Args[0]}, os.Args[1:])...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SSH_") })
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "running the tests among processes of their own: %v\n", err)
		return 1
	}
	return 0
}

// host is a machine of its own to ctplan: its rules, its /etc, its name.
type host struct {
	*nstest.NS
	t       *testing.T
	backend live.Backend
	name    string
	initial bool // ctplan runs in the machine's own network namespace, for what only that can set
}

// newHost makes a host with a copy of the machine's /etc, without what a
// machine may have there that ctplan would edit. The binary stands in
// /run/test/ctplan, where an ordinary user can start it too. Each folder in private
// is a copy too.
func newHost(t *testing.T, backend live.Backend, name string, private ...string) *host {
	t.Helper()
	// Folders that a machine may lack come to be in the namespace alone.
	ns := nstest.New(t, append([]string{"/etc", "/var/lib"}, private...)...)
	ns.Use(backend)
	h := &host{NS: ns, t: t, backend: backend, name: name}
	h.Dir = "/run"
	h.Run("sh", "-c", `
		rm -rf /etc/iptables /etc/sysconfig /var/lib/ctplan /etc/init.d/iptables /etc/init.d/ip6tables
		rm -f /etc/modprobe.d/*.conf /etc/modules-load.d/*.conf /etc/modules /etc/sysctl.d/*.conf
		mkdir -p /run/test /etc/modprobe.d /etc/modules-load.d /etc/sysctl.d
		ln -s ../sysctl.conf /etc/sysctl.d/99-sysctl.conf
		printf '# Local settings.\nnet.ipv4.ip_forward = 0\n' > /etc/sysctl.conf`)
	bin, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	h.write("/run/test/ctplan", string(bin))
	h.Run("chmod", "0755", "/run/test/ctplan")
	h.Dir = "/run/test"
	return h
}

// result is what a run of ctplan came to.
type result struct {
	stdout, stderr string
	status         int
}

// command is ctplan with arguments, on the host under its name.
func (h *host) command(args ...string) *exec.Cmd { return h.commandOf("/run/test/ctplan", args...) }

// commandOf is the same for another program.
func (h *host) commandOf(program string, args ...string) *exec.Cmd {
	words := []string{"--uts", "--", "sh", "-c", `echo "$0" > /proc/sys/kernel/hostname && exec "$@"`, h.name}
	if h.initial {
		words = append(words, "nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", os.Getpid()), "--")
	}
	return h.Command("unshare", slices.Concat(words, []string{program}, args)...)
}

// try runs ctplan and returns what came of it, whatever that is.
func (h *host) try(args ...string) result {
	h.t.Helper()
	return finish(h.t, h.command(args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("running ctplan: %v", err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ctplan runs ctplan and fails the test unless it exits with the status.
func (h *host) ctplan(status int, args ...string) result {
	h.t.Helper()
	r := h.try(args...)
	if r.status != status {
		h.t.Fatalf("ctplan %s: exit status %d, want %d\nstdout:\n%s\nstderr:\n%s",
			strings.Join(args, " "), r.status, status, r.stdout, r.stderr)
	}
	return r
}

// config writes HCL and returns its path on the host.
func (h *host) config(hcl string) string {
	h.t.Helper()
	h.write("/run/test/main.hcl", hcl)
	return "/run/test/main.hcl"
}

// example puts one of the repository's examples on the host.
func (h *host) example(name string) string {
	h.t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "..", "..", "examples", name+".hcl"))
	if err != nil {
		h.t.Fatal(err)
	}
	return h.config(string(content))
}

func (h *host) write(path, content string) {
	h.t.Helper()
	testhost.Lay(h.t, h.Path("/"), map[string]string{path: content})
}

func (h *host) read(path string) string {
	h.t.Helper()
	content, err := os.ReadFile(h.Path(path))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(content)
}

// sh runs a shell script on the host, in the network namespace that ctplan sees.
func (h *host) sh(script string) string {
	h.t.Helper()
	if h.initial {
		return h.Run("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", os.Getpid()), "--", "sh", "-ec", script)
	}
	return h.Run("sh", "-ec", script)
}

var counters = regexp.MustCompile(`(?m)^(#.*\n|\[\d+:\d+\] )| \[\d+:\d+\]$`)

// rules is iptables-save and ip6tables-save without comments and counters.
func (h *host) rules() string {
	h.t.Helper()
	v4, v6, _ := strings.Cut(counters.ReplaceAllString(h.sh("iptables-save; echo --; ip6tables-save"), ""), "--\n")
	return inOrder(v4) + "--\n" + inOrder(v6)
}

// inOrder sorts the tables that iptables-save prints, and their chains, by name:
// nft prints them as they came to be, and a table that was loaded whole is new.
func inOrder(saved string) string {
	tables := strings.SplitAfter(saved, "COMMIT\n")
	for i, t := range tables {
		lines := slices.Collect(strings.Lines(t))
		// The table, its chains, their rules, COMMIT; rules of one chain as they are.
		slices.SortStableFunc(lines, func(a, b string) int {
			rank := func(l string) string {
				words := strings.Fields(l)
				switch {
				case l[0] == '*':
					return "0"
				case l[0] == ':':
					return "1" + words[0]
				case l[0] == '-' && len(words) > 1:
					return "2" + words[1]
				}
				return "3"
			}
			return strings.Compare(rank(a), rank(b))
		})
		tables[i] = strings.Join(lines, "")
	}
	slices.Sort(tables)
	return strings.Join(tables, "")
}

// state is all that ctplan could change on the host, as text to compare: rules,
// sysctls, and every file under /etc with its metadata and xattrs.
func (h *host) state() string {
	h.t.Helper()
	var b strings.Builder
	b.WriteString(h.rules())
	// The sizes are the machine's: on a host that cannot set them they say what
	// others do.
	skip := "*_count"
	if !h.initial {
		skip += "|*_max|*_buckets"
	}
	b.WriteString(h.sh(`cd /proc/sys/net; for f in netfilter/nf_conntrack_* nf_conntrack_max; do
		case $f in ` + skip + `) ;; *) [ -r "$f" ] && echo "$f = $(cat $f)";; esac; done`))
	if h.initial {
		b.WriteString(h.sh("echo hashsize = $(cat " + nstest.Hashsize + ")"))
	}
	if err := files(&b, h.Path("/"), "etc"); err != nil {
		h.t.Fatal(err)
	}
	return b.String()
}

// files writes every file in a folder under root: mode, owner, what a link
// points to, extended attributes, content.
func files(b *strings.Builder, root, folder string) error {
	return filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(b, "%s mode=%o owner=%d:%d", strings.TrimPrefix(path, strings.TrimSuffix(root, "/")), st.Mode, st.Uid, st.Gid)
		switch d.Type() {
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(b, " -> %s", target)
		case 0:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			names := make([]byte, 4096)
			n, _ := unix.Llistxattr(path, names)
			for name := range strings.SplitSeq(strings.Trim(string(names[:max(n, 0)]), "\x00"), "\x00") {
				if name != "" {
					value := make([]byte, 4096)
					v, _ := unix.Lgetxattr(path, name, value)
					fmt.Fprintf(b, " %s=%q", name, value[:max(v, 0)])
				}
			}
			fmt.Fprintf(b, " %q", content)
		}
		b.WriteByte('\n')
		return nil
	})
}

// same fails the test when two states differ, and shows how.
func same(t *testing.T, what, want, got string) {
	t.Helper()
	if want != got {
		t.Fatalf("%s:\n%s", what, textdiff.Unified("before", "after", want, got, 2))
	}
}

// document is what the tests read of ctplan's JSON.
type document struct {
	Changes []struct {
		Address string `json:"address"`
	} `json:"changes"`
	Blocks []struct {
		Where    string   `json:"where"`
		Remedy   string   `json:"remedy"`
		Commands []string `json:"commands"`
	} `json:"blocks"`
	Warnings []struct {
		Commands []string `json:"commands"`
	} `json:"warnings"`
}

func (h *host) document(r result) (doc document) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		h.t.Fatalf("reading JSON: %v\nstdout:\n%s\nstderr:\n%s", err, r.stdout, r.stderr)
	}
	return doc
}

// addresses runs drift and returns its exit status and what it names.
func (h *host) addresses(path string) (status int, found []string) {
	h.t.Helper()
	r := h.try("drift", "--json", path)
	for _, c := range h.document(r).Changes {
		found = append(found, c.Address)
	}
	return r.status, found
}

// remedies are the commands that the warnings of a plan give.
func (h *host) remedies(path string) (commands []string) {
	h.t.Helper()
	for _, w := range h.document(h.try("plan", "--json", path)).Warnings {
		commands = append(commands, w.Commands...)
	}
	return commands
}

// pid is a process that lives in the host's namespaces.
func (h *host) pid() int {
	h.t.Helper()
	pid, err := strconv.Atoi(strings.Split(h.Path("/"), "/")[2])
	if err != nil {
		h.t.Fatal(err)
	}
	return pid
}
