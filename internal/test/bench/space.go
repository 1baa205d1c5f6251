package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// space is a host of its own, made of the namespaces that this process stands in.
type space struct {
	backend string
	bin     string // ctplan
	dir     string // for configurations
}

// newSpace furnishes the namespaces: a copy of /etc, an empty /run and
// /var/lib, and iptables as the backend has it.
func newSpace(backend, bin string) (*space, error) {
	s := &space{backend: backend, bin: bin, dir: "/run/bench"}
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("making mounts private: %w", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mounting an empty /run: %w", err)
	}
	script := `set -e
		mkdir -p /run/bench/bin /run/bench/etc /run/bench/lib
		cp -a /etc/. /run/bench/etc
		rm -rf /run/bench/etc/iptables /run/bench/etc/sysconfig /run/bench/etc/modprobe.d/*.conf /run/bench/etc/modules-load.d/*.conf /run/bench/etc/modules
		mount --bind /run/bench/etc /etc
		mount --bind /run/bench/lib /var/lib
		hostname web-1
		ip link set lo up`
	if _, err := s.exec("", "sh", "-c", script); err != nil {
		return nil, err
	}
	multi, err := exec.LookPath("/usr/sbin/xtables-" + backend + "-multi")
	if err != nil {
		return nil, fmt.Errorf("the %s backend of iptables is not installed: %w", backend, err)
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			if err := os.Symlink(multi, filepath.Join(s.dir, "bin", tool+suffix)); err != nil {
				return nil, err
			}
		}
	}
	return s, os.Setenv("PATH", filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
}

// exec runs a command and returns what it printed on standard output, as
// ctplan reads it too: into memory.
func (s *space) exec(stdin, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, tail(stdout.String()), tail(stderr.String()))
	}
	return stdout.String(), nil
}

func tail(s string) string { return s[max(0, len(s)-2000):] }

// run is exec for what only has to succeed.
func (s *space) run(name string, args ...string) error {
	_, err := s.exec("", name, args...)
	return err
}

// config writes HCL and returns its path.
func (s *space) config(hcl string) (string, error) {
	path := filepath.Join(s.dir, "main.hcl")
	return path, os.WriteFile(path, []byte(hcl), 0o644)
}

// apply makes the host what the HCL declares, and sees to it that a plan has
// nothing more to change.
func (s *space) apply(hcl string) (path string, err error) {
	if path, err = s.config(hcl); err != nil {
		return "", err
	}
	if err := s.run(s.bin, "apply", "--auto-approve", path); err != nil {
		return "", err
	}
	return path, s.run(s.bin, "plan", "--detailed-exitcode", path)
}

// peak is the memory of the largest process of a run, in bytes.
func (s *space) peak(args ...string) (int64, error) {
	cmd := exec.Command(s.bin, args...)
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("ctplan %s: %w", strings.Join(args, " "), err)
	}
	return cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10, nil
}

// children are the commands that a run of ctplan starts, as strace sees them;
// "" without strace.
func (s *space) children(args ...string) (string, error) {
	if _, err := exec.LookPath("strace"); err != nil {
		return "", nil
	}
	trace := filepath.Join(s.dir, "trace")
	if err := s.run("strace", append([]string{"-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-z", "-o", trace, s.bin}, args...)...); err != nil {
		return "", err
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		return "", err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if _, rest, ok := strings.Cut(line, `execve("`); ok {
			name, _, _ := strings.Cut(rest, `"`)
			names = append(names, filepath.Base(name))
		}
	}
	return strings.Join(names[min(1, len(names)):], ", "), nil // the first is ctplan
}
