package apply

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/change"
)

// What the disk refuses is refused whole: the old state stays, and the error
// says what to do.
func TestDiskRefuses(t *testing.T) {
	nstest.Inside(t, func(*nstest.NS) {
		for name, c := range map[string]struct {
			prepare func(t *testing.T, root string)
			want    error
			hint    string
		}{
			"full": {func(t *testing.T, root string) {
				os.WriteFile(filepath.Join(root, "etc/fill"), make([]byte, 1<<20), 0o600)
			}, unix.ENOSPC, "make room"},
			"read-only": {func(t *testing.T, root string) {
				if err := unix.Mount("", filepath.Join(root, "etc"), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
					t.Fatal(err)
				}
			}, unix.EROFS, "read-only"},
			"immutable": {func(t *testing.T, root string) {
				if out, err := exec.Command("chattr", "+i", filepath.Join(root, "etc/a")).CombinedOutput(); err != nil {
					testhost.Lacks(t, err, string(out))
				}
			}, unix.EPERM, "chattr"},
			"no folder for journals": {func(t *testing.T, root string) {
				os.WriteFile(filepath.Join(root, "state"), nil, 0o600)
			}, unix.ENOTDIR, ""},
			"no room for journals": {func(t *testing.T, root string) {
				os.Mkdir(filepath.Join(root, "state"), 0o700)
				mount(t, filepath.Join(root, "state"), "size=64k,mode=700")
			}, unix.ENOSPC, "nothing was changed"},
		} {
			t.Run(name, func(t *testing.T) {
				root := memory(t)
				etc := filepath.Join(root, "etc")
				os.Mkdir(etc, 0o755)
				mount(t, etc, "size=256k")
				os.WriteFile(filepath.Join(etc, "a"), []byte("old"), 0o644)
				c.prepare(t, root)
				f := newFake()
				f.sysctls["x"] = "1"
				env := diskEnv(root)
				env.Host.Kernel = fakeKernel{f}
				big := diskSteps()[0]
				big.File.After.Content = strings.Repeat("new", 30000)
				_, err := Run(t.Context(), env, []change.Step{sysctlStep("x", "1", "2"), big}, Options{})
				if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.hint) {
					t.Errorf("got %v, want %v and %q", err, c.want, c.hint)
				}
				data, _ := os.ReadFile(filepath.Join(etc, "a"))
				if string(data) != "old" || f.sysctls["x"] != "1" {
					t.Errorf("the file is %.20q, the sysctl %s", data, f.sysctls["x"])
				}
				if p, _ := Pending(env.Dir); p != nil {
					t.Errorf("still open: %v", p)
				}
				var incomplete *IncompleteError
				if errors.As(err, &incomplete) {
					t.Errorf("rollback is incomplete: %v", err)
				}
				if left, _ := filepath.Glob(filepath.Join(etc, ".a*")); left != nil {
					t.Errorf("left behind: %v", left)
				}
			})
		}
	})
}

func mount(t *testing.T, dir, data string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}
