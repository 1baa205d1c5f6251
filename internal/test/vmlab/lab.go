package vmlab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

// Enable is the environment variable that, set to 1, lets machines run. They
// take minutes, so `go test ./...` leaves them out and `make vm-test` sets it.
const Enable = "CTPLAN_VM"

// prepareTime is how long packages may take to arrive and images to be made.
const prepareTime = 10 * time.Minute

// Lab is what machines are made from.
type Lab struct {
	cache      cache
	qemu, user string // unpacked packages
	agent      string
	ctplan     string
}

// Open prepares the lab. ctplan is the binary, built without cgo, that the
// machines have as /usr/local/sbin/ctplan. The test is skipped where Enable is
// not 1 or a tool of Debian is missing; under CI=true a missing tool fails it.
func Open(t testing.TB, ctplan string) *Lab {
	t.Helper()
	if os.Getenv(Enable) != "1" {
		t.Skipf("boots machines: run make vm-test, or set %s=1", Enable)
	}
	for _, tool := range []string{"apt-get", "dpkg-deb", "depmod", "mke2fs", "cp"} {
		if _, err := exec.LookPath(tool); err != nil {
			testhost.Lacks(t, "needs "+tool+" (packages apt, dpkg, kmod, e2fsprogs and coreutils), with sbin in PATH")
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		testhost.Lacks(t, "needs "+keyring+" (package debian-archive-keyring)")
	}
	c, err := openCache()
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{cache: c, ctplan: ctplan, agent: filepath.Join(t.TempDir(), "agent")}
	ctx, cancel := context.WithTimeout(context.Background(), prepareTime)
	defer cancel()
	err = c.locked(ctx, func() error {
		var err error
		if l.qemu, err = c.unpacked(ctx, qemuBundle); err != nil {
			return err
		}
		l.user, err = c.unpacked(ctx, userBundle)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := Build(ctx, "github.com/ctplan/ctplan/internal/test/vmlab/agent", l.agent); err != nil {
		t.Fatal(err)
	}
	return l
}

// Build builds a command of this module for the machines, which may have no
// other C library than their own.
func Build(ctx context.Context, pkg, to string) error {
	build := command(ctx, "go", "build", "-buildvcs=false", "-o", to, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	return build.run()
}
