package hostfile_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
)

// needRoot skips on a laptop and fails under CI=true.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	testhost.Lacks(t, "needs root")
}

// tree makes a root with files, and links where the content is "-> target".
func read(t *testing.T, root, name string) host.File {
	t.Helper()
	f, err := hostfile.Read(root, name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// names lists a folder, so that a test sees what a write left behind.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestReadRefuses(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/etc/big":  strings.Repeat("x", hostfile.MaxSize+1),
		"/etc/full": strings.Repeat("x", hostfile.MaxSize),
		"/etc/loop": "-> loop2", "/etc/loop2": "-> /etc/loop",
		"/etc/to-fifo": "-> fifo",
	})
	if err := unix.Mkfifo(filepath.Join(root, "/etc/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"/etc":         hostfile.ErrNotRegular,
		"/etc/fifo":    hostfile.ErrNotRegular,
		"/etc/to-fifo": hostfile.ErrNotRegular,
		"/etc/big":     hostfile.ErrTooLarge,
		"/etc/loop":    unix.ELOOP,
		"/etc/full":    nil,
		"/etc/none":    nil,
		"/etc/full/x":  nil,
	} {
		done := make(chan error, 1)
		go func() { _, err := hostfile.Read(root, name); done <- err }()
		select {
		case err := <-done:
			if !errors.Is(err, want) {
				t.Errorf("Read(%s) = %v, want %v", name, err, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("Read(%s) blocks", name)
		}
	}
	if _, err := hostfile.Read("", "/dev/null"); !errors.Is(err, hostfile.ErrNotRegular) {
		t.Errorf("Read(/dev/null) = %v", err)
	}
}

func TestReadTarget(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/etc/sysctl.conf":             "a = 1\n",
		"/etc/sysctl.d/99-sysctl.conf": "-> ../sysctl.conf",
		"/etc/absolute":                "-> /etc/sysctl.conf",
		"/etc/dangling":                "-> nowhere/file",
		"/init.d":                      "-> etc/sysctl.d",
	})
	for name, want := range map[string]string{
		"/etc/sysctl.conf":             "",
		"/etc/sysctl.d/99-sysctl.conf": "/etc/sysctl.conf",
		"/etc/absolute":                "/etc/sysctl.conf",
		"/init.d/99-sysctl.conf":       "/etc/sysctl.conf",
		"/init.d/new":                  "/etc/sysctl.d/new",
		"/etc/dangling":                "/etc/nowhere/file",
		"/../../etc/absolute":          "/etc/sysctl.conf",
	} {
		f := read(t, root, name)
		if f.Target != want {
			t.Errorf("Read(%s).Target = %q, want %q", name, f.Target, want)
		}
		if f.Exists && f.Content != "a = 1\n" {
			t.Errorf("Read(%s).Content = %q", name, f.Content)
		}
	}
}

func TestReadRelative(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("a.hcl", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := read(t, "", "a.hcl")
	if !before.Exists || before.Target != "" {
		t.Fatalf("got %+v", before)
	}
	after := before
	after.Content = "y"
	if err := hostfile.Write("", before, after); err != nil {
		t.Fatal(err)
	}
	if got := read(t, "", "./a.hcl"); got.Content != "y" || got.Mode != 0o600 {
		t.Errorf("got %+v", got)
	}
}

// acl is an ACL with one named user and a mask, as the kernel stores it.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" + // owner rw-
	"\x02\x00\x04\x00\x01\x00\x00\x00" + // user 1 r--
	"\x04\x00\x04\x00\xff\xff\xff\xff" + // group r--
	"\x10\x00\x04\x00\xff\xff\xff\xff" + // mask r--
	"\x20\x00\x00\x00\xff\xff\xff\xff" // other ---

// TestWriteKeeps holds that whatever a file has besides its content survives
// a change, and that the inverse change brings it back whole, from nothing too.
func TestWriteKeeps(t *testing.T) {
	needRoot(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		root := testhost.Tree(t, map[string]string{"/etc/real/x.conf": "old\n", "/etc/link": "-> real/x.conf"})
		p := filepath.Join(root, "/etc/real/x.conf")
		if rng.IntN(2) == 0 { // files made in the folder inherit an ACL
			if err := unix.Setxattr(filepath.Dir(p), "system.posix_acl_default", []byte(acl), 0); err != nil {
				t.Fatal(err)
			}
		}
		for name, value := range map[string]string{
			"user.note": "caf\xe9\x00", "trusted.t": "", "system.posix_acl_access": acl, "security.ctplan": "v",
		} {
			if rng.IntN(2) == 0 {
				continue
			}
			if err := unix.Setxattr(p, name, []byte(value), 0); err != nil {
				t.Fatal(name, err)
			}
		}
		if err := os.Chown(p, rng.IntN(3), rng.IntN(3)); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(3) > 0 {
			if err := unix.Chmod(p, uint32(rng.IntN(0o10000))); err != nil {
				t.Fatal(err)
			}
		}
		path := []string{"/etc/link", "/etc/real/x.conf"}[rng.IntN(2)]
		before := read(t, root, path)
		after := before
		after.Content = "new\n"
		want := after
		for _, step := range []struct{ from, to, want host.File }{
			{before, after, want},
			{after, before, before},
			{before, host.File{Path: path}, host.File{Path: path, Target: before.Target}},
			{host.File{Path: path}, before, before},
		} {
			if err := hostfile.Write(root, step.from, step.to); err != nil {
				t.Fatal(i, err)
			}
			if diff := cmp.Diff(step.want, read(t, root, path)); diff != "" {
				t.Fatalf("case %d: %s", i, diff)
			}
			if err := hostfile.Write(root, step.from, step.to); err != nil {
				t.Fatalf("case %d: the same write again: %v", i, err)
			}
		}
		if got := names(t, filepath.Dir(p)); len(got) != 1 {
			t.Fatalf("left behind: %q", got)
		}
		if target, err := os.Readlink(filepath.Join(root, "/etc/link")); target != "real/x.conf" {
			t.Fatal(target, err)
		}
	}
}

func TestXattrsAreBase64(t *testing.T) {
	root := testhost.Tree(t, map[string]string{"/f": ""})
	if err := unix.Setxattr(filepath.Join(root, "f"), "user.bytes", []byte("\xff\x00"), 0); err != nil {
		testhost.Lacks(t, "no extended attributes here:", err)
	}
	if got, want := read(t, root, "/f").Xattrs["user.bytes"], base64.StdEncoding.EncodeToString([]byte("\xff\x00")); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWriteNew(t *testing.T) {
	root := testhost.Tree(t, map[string]string{"/etc/dangling": "-> made/file"})
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	for _, f := range []host.File{
		{Path: "/etc/modules-load.d/netfilter.conf", Exists: true, Content: "nf_conntrack\n", Mode: 0o644},
		{Path: "/etc/dangling", Exists: true, Content: "x"},
		{Path: "/etc/secret", Exists: true, Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid()},
	} {
		f.UID, f.GID = os.Geteuid(), os.Getegid()
		if err := hostfile.Write(root, host.File{Path: f.Path}, f); err != nil {
			t.Fatal(err)
		}
		got := read(t, root, f.Path)
		want := f
		want.Target = got.Target
		if want.Mode == 0 {
			want.Mode = 0o644
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	info, err := os.Stat(filepath.Join(root, "/etc/modules-load.d"))
	if err != nil || info.Mode().Perm()&0o700 != 0o700 {
		t.Error(info, err)
	}
	if err := hostfile.Write(root, host.File{Path: "/etc/a"}, host.File{Path: "/etc/b"}); err == nil {
		t.Error("two paths: no error")
	}
}

func TestWriteChanged(t *testing.T) {
	root := testhost.Tree(t, map[string]string{"/etc/f": "tampered"})
	before := host.File{Path: "/etc/f", Exists: true, Content: "old"}
	after := host.File{Path: "/etc/f", Exists: true, Content: "new"}
	absent := host.File{Path: "/etc/f"}
	for _, w := range [][2]host.File{{before, after}, {before, absent}, {absent, after}} {
		if err := hostfile.Write(root, w[0], w[1]); !errors.Is(err, hostfile.ErrChanged) {
			t.Errorf("got %v, want ErrChanged", err)
		}
	}
	gone := host.File{Path: "/etc/gone", Exists: true, Content: "old"}
	if err := hostfile.Write(root, gone, host.File{Path: "/etc/gone", Exists: true, Content: "new"}); !errors.Is(err, hostfile.ErrChanged) {
		t.Errorf("got %v, want ErrChanged", err)
	}
	if got := read(t, root, "/etc/f").Content; got != "tampered" {
		t.Errorf("content is %q", got)
	}
}

// TestWriteSweeps holds that what a killed write left is taken away by the
// next one, and nothing that only looks alike.
func TestWriteSweeps(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/etc/f": "old", "/etc/.f7465936548259817352": "half", "/etc/.f.swp": "", "/etc/.f2026": "", "/etc/.fx7465936548259817": "",
	})
	f := host.File{Path: "/etc/f", Exists: true, Content: "old"}
	g := f
	g.Content = "new"
	if err := hostfile.Write(root, f, g); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{".f.swp", ".f2026", ".fx7465936548259817", "f"}, names(t, filepath.Join(root, "etc"))); diff != "" {
		t.Error(diff)
	}
}

// TestWriteFails holds, for each way in which a write can fail, that the old
// file stays, that nothing is left behind, and that the error says what to do.
func TestWriteFails(t *testing.T) {
	needRoot(t)
	mount := func(t *testing.T, dir, options string) {
		if err := unix.Mount("ctplan-test", dir, "tmpfs", 0, options); err != nil {
			testhost.Lacks(t, "cannot mount:", err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
	chattr := func(t *testing.T, flag, p string) {
		if out, err := exec.Command("chattr", flag, p).CombinedOutput(); err != nil {
			testhost.Lacks(t, "chattr:", err, string(out))
		}
	}
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir, file string)
		want string
	}{
		{"immutable file", func(t *testing.T, dir, file string) {
			chattr(t, "+i", file)
			t.Cleanup(func() { chattr(t, "-i", file) })
		}, "chattr -i"},
		{"immutable folder", func(t *testing.T, dir, file string) {
			chattr(t, "+i", dir)
			t.Cleanup(func() { chattr(t, "-i", dir) })
		}, "chattr -i"},
		{"no space", func(t *testing.T, dir, file string) {
			mount(t, dir, "size=64k")
			os.WriteFile(file, []byte("old"), 0o644)
		}, "make room"},
		{"read-only", func(t *testing.T, dir, file string) {
			mount(t, dir, "")
			os.WriteFile(file, []byte("old"), 0o644)
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
		}, "mounted read-only"},
		{"mount point", func(t *testing.T, dir, file string) {
			if err := unix.Mount(file, file, "", unix.MS_BIND, ""); err != nil {
				testhost.Lacks(t, err)
			}
			t.Cleanup(func() { unix.Unmount(file, unix.MNT_DETACH) })
		}, "mount point"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := testhost.Tree(t, map[string]string{"/etc/f": "old"})
			dir := filepath.Join(root, "etc")
			c.make(t, dir, filepath.Join(dir, "f"))
			before := read(t, root, "/etc/f")
			after := before
			after.Content = strings.Repeat("new\n", 100_000)
			err := hostfile.Write(root, before, after)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %q in it", err, c.want)
			} else if strings.Contains(err.Error(), root) {
				t.Errorf("the error names the temporary file: %v", err)
			}
			if diff := cmp.Diff(before, read(t, root, "/etc/f")); diff != "" {
				t.Error(diff)
			}
			if got := names(t, dir); len(got) != 1 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
}

func TestConfs(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/etc/x.d/50-b.conf": "", "/etc/x.d/.hidden.conf": "", "/etc/x.d/README": "", "/etc/x.d/sub.conf/f": "",
		"/etc/x.d/60-masked.conf": "-> /dev/null", "/usr/lib/x.d/60-masked.conf": "",
		"/etc/x.d/65-dangling.conf": "-> nowhere", "/usr/lib/x.d/65-dangling.conf": "",
		"/run/x.d/50-b.conf": "", "/run/x.d/40-r.conf": "", "/usr/lib/x.d/10-u.conf": "",
		"/etc/x.d/70-link.conf": "-> ../x.conf", "/etc/x.conf": "",
		"/lib": "-> usr/lib",
	})
	dirs := []string{"/etc/x.d", "/run/x.d", "/none/x.d", "/usr/lib/x.d", "/lib/x.d"}
	got, err := hostfile.Confs(root, dirs)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/usr/lib/x.d/10-u.conf", "/run/x.d/40-r.conf", "/etc/x.d/50-b.conf", "/etc/x.d/70-link.conf"}
	if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" {
		t.Fatal(diff)
	}
	for _, c := range []struct {
		name string
		at   int // where it stands then
		n    int
	}{
		{"/etc/x.d/50-b.conf", 2, 4}, {"/etc/x.conf", 3, 4}, {"/etc/x.d/45-new.conf", 2, 5},
		{"/etc/x.d/99-new.conf", 4, 5}, {"/elsewhere", 4, 5}, {"/lib/x.d/10-u.conf", 0, 4},
	} {
		list := hostfile.Place(root, got, dirs, c.name)
		if len(list) != c.n || list[c.at].Path != c.name {
			t.Errorf("Place(%s) = %q", c.name, list)
		}
	}
	if list := hostfile.Place(root, got, dirs, "/etc/x.conf"); list[3].String() != "/etc/x.conf as /etc/x.d/70-link.conf" {
		t.Errorf("Place by a link: %q", list)
	}
	if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" {
		t.Errorf("Place changed its argument: %s", diff)
	}
}

func ExampleRead() {
	f, err := hostfile.Read("", "/nonexistent/sysctl.conf")
	fmt.Println(f.Exists, err)
	// Output: false <nil>
}
