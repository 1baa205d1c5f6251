// Package netns finds the network namespaces of a machine and does things in
// them.
//
// It owns how they are found: by the processes that stand in them, and by the
// places where they are mounted (ip-netns(8) and container engines do that).
// It starts no process and changes nothing. It promises that what Do is given
// runs wholly in the namespace, and that nothing else does.
//
// A namespace that only an open file, or a mount in another mount namespace,
// keeps alive is not found: nothing lists those.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Namespace is one network namespace.
type Namespace struct {
	Inode   uint64 // its identity for as long as it exists
	Path    string // where it is mounted; "" where it is not
	PID     int    // the first process in it; 0 where there is none
	Command string // that process's name

	root string
}

// Find lists the network namespaces other than that of this process, seen
// from root, by inode. It reads /proc/PID/ns/net of every process, a
// microsecond or two each.
func Find(root string) ([]Namespace, error) {
	own, err := os.Readlink(root + "/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("looking for network namespaces: %w", err)
	}
	found := map[uint64]*Namespace{}
	at := func(link string) *Namespace {
		inode, ok := parse(link)
		if !ok || link == own {
			return nil
		}
		if found[inode] == nil {
			found[inode] = &Namespace{Inode: inode, root: root}
		}
		return found[inode]
	}
	mounts, err := os.ReadFile(root + "/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("looking for network namespaces: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		// "ID PARENT MAJOR:MINOR ROOT PATH …", proc_pid_mountinfo(5).
		if f := strings.Fields(line); len(f) > 4 {
			if n := at(f[3]); n != nil && n.Path == "" {
				n.Path = unescape(f[4])
			}
		}
	}
	dir, err := os.Open(root + "/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for network namespaces: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("looking for network namespaces: %w", err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		link, err := os.Readlink(root + "/proc/" + name + "/ns/net")
		if err != nil {
			continue // gone, or a zombie
		}
		if n := at(link); n != nil && (n.PID == 0 || pid < n.PID) {
			n.PID = pid
		}
	}
	var list []Namespace
	for _, n := range found {
		if n.PID != 0 {
			comm, _ := os.ReadFile(fmt.Sprintf("%s/proc/%d/comm", root, n.PID))
			n.Command = strings.ToValidUTF8(strings.TrimSuffix(string(comm), "\n"), "\uFFFD")
		}
		n.Path = strings.ToValidUTF8(n.Path, "\uFFFD")
		list = append(list, *n)
	}
	slices.SortFunc(list, func(a, b Namespace) int { return int(int64(a.Inode) - int64(b.Inode)) })
	return list, nil
}

// parse reads "net:[INODE]".
func parse(link string) (uint64, bool) {
	number, ok := strings.CutPrefix(link, "net:[")
	number, end := strings.CutSuffix(number, "]")
	inode, err := strconv.ParseUint(number, 10, 64)
	return inode, ok && end && err == nil
}

// unescape takes back what mountinfo writes as \OOO: blanks and backslashes.
func unescape(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '\\' && i+4 <= len(path) {
			if c, err := strconv.ParseUint(path[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

// ErrGone is when a namespace ended since it was found.
var ErrGone = errors.New("the network namespace is gone")

// open opens the namespace.
func (n Namespace) open() (*os.File, error) {
	paths := []string{n.Path}
	if n.PID != 0 {
		paths = append(paths, fmt.Sprintf("/proc/%d/ns/net", n.PID))
	}
	for _, p := range paths {
		if p == "" {
			continue
		}
		f, err := os.Open(filepath.Join(n.root, p))
		if err != nil {
			continue
		}
		// The process may have gone and its number come back.
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil && st.Ino == n.Inode {
			return f, nil
		}
		f.Close()
	}
	return nil, ErrGone
}

// Do calls fn in the namespace: on a thread of its own, which sockets and
// processes that fn makes inherit from and goroutines that it starts do not.
func (n Namespace) Do(fn func() error) error {
	f, err := n.open()
	if err != nil {
		return err
	}
	defer f.Close()
	done := make(chan error)
	go apart(func() {
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- os.NewSyscallError("setns", err)
			return
		}
		done <- fn()
	})
	return <-done
}

// apart calls fn on a thread that ends with it, and that is not the first
// thread of the process: that one never ends, and /proc/self is what it sees.
func apart(fn func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		fn()
		return // still locked, which ends the thread
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() { // on another one, as this one is taken
		defer close(done)
		apart(fn)
	}()
	<-done
}
