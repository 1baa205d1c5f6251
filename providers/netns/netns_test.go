package netns

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
)

// TestFind finds a namespace by its process, and by where it is mounted once
// the process has gone; and does something there.
func TestFind(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		cmd := ns.Command("sh", "-c", "echo ready; read x || exit 0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		stop := nstest.Start(t, cmd)
		find := func(is func(Namespace) bool) *Namespace {
			list, err := Find("")
			if err != nil {
				t.Fatal(err)
			}
			if i := slices.IndexFunc(list, is); i >= 0 {
				return &list[i]
			}
			return nil
		}
		byPID := find(func(n Namespace) bool { return n.PID == cmd.Process.Pid })
		if byPID == nil || byPID.Command != "sh" || byPID.Path != "" {
			t.Fatalf("by its process: %+v", byPID)
		}
		marked := func() bool { // nobody has set lo up there
			lo, err := net.InterfaceByName("lo")
			return err == nil && lo.Flags&net.FlagUp == 0
		}
		if err := byPID.Do(func() error {
			if !marked() {
				t.Error("Do is not in the namespace")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if marked() {
			t.Error("after Do, this is still in the namespace")
		}
		failure := errors.New("x")
		if err := byPID.Do(func() error { return failure }); !errors.Is(err, failure) {
			t.Errorf("Do: %v", err)
		}

		const mount = "/run/netns/with blank"
		ns.Run("mkdir", "/run/netns")
		if err := os.WriteFile(mount, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		proc := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns/net")
		ns.Run("mount", "--bind", proc, mount)
		stop()
		byPath := find(func(n Namespace) bool { return n.Inode == byPID.Inode })
		if byPath == nil || byPath.Path != mount || byPath.PID != 0 {
			t.Fatalf("by its mount: %+v", byPath)
		}
		if err := byPath.Do(func() error { return nil }); err != nil {
			t.Error(err)
		}
		ns.Run("umount", mount)
		if err := byPath.Do(func() error { return nil }); !errors.Is(err, ErrGone) {
			t.Errorf("after it ended: %v", err)
		}
		own, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		inode, _ := parse(own)
		if find(func(n Namespace) bool { return n.Inode == inode }) != nil {
			t.Error("its own namespace counts as another")
		}
	})
}
