package vmlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/internal/test/vmlab/wire"
	"github.com/ctplan/ctplan/planner/host"
)

const (
	bootTime = 240 * time.Second // a machine may take to answer, on a busy host
	runTime  = 120 * time.Second // a script may take
	slotTime = 20 * time.Minute  // to wait for other machines to end
)

// Option changes what Boot boots.
type Option func(*machine)

// Memory gives the machine memory in MiB; the kernel manages less. 512 if absent.
func Memory(mib int) Option { return func(m *machine) { m.memory = mib } }

// Cmdline adds to the kernel's command line.
func Cmdline(words string) Option { return func(m *machine) { m.cmdline += " " + words } }

// Systemd gives the machine a root of its own: a minimal Debian 12 as
// debootstrap makes it, with systemd, netfilter-persistent and their own order
// of boot. Making it takes root.
func Systemd() Option { return func(m *machine) { m.systemd = true } }

// VM is a running machine, as one test sees it.
type VM struct {
	t testing.TB
	*machine
}

// machine is QEMU with its disk.
type machine struct {
	lab     *Lab
	kernel  Kernel
	memory  int
	cmdline string
	systemd bool
	dir     string // disk, initramfs, console

	vmlinuz string
	release string
	qemu    *exec.Cmd
	ended   chan struct{} // closed when QEMU has
	port    net.Conn
	last    int // request's ID
	booted  time.Duration
}

// Boot starts a machine with a fresh disk and waits until it is up. It waits
// before while two others run. The machine ends with the test; its console is
// logged if the test failed.
func (l *Lab) Boot(t testing.TB, k Kernel, options ...Option) *VM {
	t.Helper()
	m := &machine{lab: l, kernel: k, memory: 512, dir: t.TempDir()}
	for _, o := range options {
		o(m)
	}
	if m.systemd && os.Geteuid() != 0 {
		testhost.Lacks(t, "needs root, as debootstrap does")
	}
	vm := &VM{t, m}
	prepare, cancel := context.WithTimeout(context.Background(), prepareTime)
	defer cancel()
	if err := l.cache.locked(prepare, func() error { return m.prepare(prepare) }); err != nil {
		t.Fatal(err)
	}
	wait, cancel := context.WithTimeout(context.Background(), slotTime)
	defer cancel()
	release, err := l.cache.slot(wait)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.kill()
		release()
		if t.Failed() {
			t.Logf("console of the machine:\n%s", vm.Console())
		}
	})
	vm.start()
	return vm
}

// With is the same machine for another test, such as a subtest.
func (vm *VM) With(t testing.TB) *VM { return &VM{t, vm.machine} }

// prepare makes the machine's files.
func (m *machine) prepare(ctx context.Context) error {
	tree, err := m.lab.cache.unpacked(ctx, m.kernel.bundle())
	if err != nil {
		return err
	}
	if m.release, err = release(tree); err != nil {
		return err
	}
	m.vmlinuz = filepath.Join(tree, "boot/vmlinuz-"+m.release)
	image := m.lab.cache.image
	if m.systemd {
		image = m.lab.cache.systemdImage
	}
	base, err := image(ctx, m.lab.user, tree, m.release)
	if err != nil {
		return err
	}
	if err := command(ctx, "cp", "--sparse=always", "--reflink=auto", base, m.path("disk")).run(); err != nil {
		return err
	}
	return m.lab.initramfs(ctx, m.path("initramfs"), tree, m.release, map[string]string{"agent": m.lab.agent, "ctplan": m.lab.ctplan})
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// start runs QEMU and waits for the agent.
func (vm *VM) start() {
	vm.t.Helper()
	began := time.Now()
	if err := vm.launch(); err != nil {
		vm.t.Fatalf("starting QEMU: %v", err)
	}
	var hello wire.Reply
	if err := vm.receive(&hello, bootTime); err != nil {
		vm.kill()
		vm.t.Fatalf("booting %s: %v\n%s", vm.release, err, tail(vm.Console()))
	}
	vm.booted = time.Since(began)
	vm.t.Logf("%s with %d MiB booted in %.1f s", vm.release, vm.memory, vm.booted.Seconds())
}

// launch runs QEMU from its packages' folder, with its own libraries.
func (m *machine) launch() error {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "agent")
	defer theirs.Close()
	m.port, err = net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return err
	}
	console, err := os.OpenFile(m.path("console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer console.Close()
	root := m.lab.qemu
	m.qemu = exec.Command(filepath.Join(root, "lib64/ld-linux-x86-64.so.2"),
		"--library-path", filepath.Join(root, "lib/x86_64-linux-gnu")+":"+filepath.Join(root, "usr/lib/x86_64-linux-gnu"),
		filepath.Join(root, "usr/bin/qemu-system-x86_64"),
		"-L", filepath.Join(root, "usr/share/seabios"), "-L", filepath.Join(root, "usr/share/qemu"),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "1", "-m", strconv.Itoa(m.memory),
		"-kernel", m.vmlinuz, "-initrd", m.path("initramfs"),
		"-append", "console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on"+m.cmdline,
		"-serial", "stdio",
		"-drive", "if=none,id=root,format=raw,file="+m.path("disk"), "-device", "virtio-blk-pci,drive=root",
		"-chardev", "socket,id=agent,fd=3", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name="+wire.Port)
	m.qemu.Env = append(os.Environ(), "QEMU_MODULE_DIR="+filepath.Join(root, "usr/lib/x86_64-linux-gnu/qemu"))
	m.qemu.ExtraFiles = []*os.File{theirs}
	m.qemu.Stdout, m.qemu.Stderr = console, console
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := m.qemu.Start(); err != nil {
		return err
	}
	ended, qemu := make(chan struct{}), m.qemu
	go func() {
		qemu.Wait()
		close(ended)
	}()
	m.ended = ended
	return nil
}

// kill ends QEMU at once.
func (m *machine) kill() {
	if m.qemu != nil && m.qemu.Process != nil {
		m.qemu.Process.Kill()
		<-m.ended
		m.port.Close()
		m.qemu = nil
	}
}

func (m *machine) receive(reply *wire.Reply, limit time.Duration) error {
	m.port.SetReadDeadline(time.Now().Add(limit))
	err := wire.Read(m.port, reply)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("no answer within %v", limit)
	}
	if err != nil {
		return fmt.Errorf("the machine ended: %w", err)
	}
	return nil
}

// Result is what a script came to.
type Result struct {
	Stdout, Stderr string
	Status         int // 128 + n after signal n
}

// Try runs a bash script in the machine and returns what came of it.
func (vm *VM) Try(script string) Result {
	vm.t.Helper()
	return vm.try(script, nil)
}

func (vm *VM) try(script string, stdin []byte) Result {
	vm.t.Helper()
	vm.last++
	request := wire.Request{ID: vm.last, Script: script, Stdin: stdin, Seconds: runTime.Seconds()}
	var reply wire.Reply
	err := wire.Write(vm.port, request)
	if err == nil {
		err = vm.receive(&reply, runTime+10*time.Second)
	}
	switch {
	case err == nil && reply.Error != "":
		err = errors.New(reply.Error)
	case err == nil && reply.ID != request.ID:
		err = fmt.Errorf("request %d was answered with %d", request.ID, reply.ID)
	}
	if err != nil {
		vm.t.Fatalf("in the machine (%s):\n%s\n%v\n%s%s", vm.release, script, err, reply.Stdout, reply.Stderr)
	}
	return Result{string(reply.Stdout), string(reply.Stderr), reply.Status}
}

// Run runs a bash script in the machine, fails the test unless it exits with
// 0, and returns what it printed, blanks around it removed.
func (vm *VM) Run(script string) string {
	vm.t.Helper()
	return vm.Exits(0, script)
}

// Exits is Run with another exit status.
func (vm *VM) Exits(status int, script string) string {
	vm.t.Helper()
	r := vm.try(script, nil)
	if r.Status != status {
		vm.t.Fatalf("in the machine (%s):\n%s\nexit status %d, want %d\nstdout:\n%s\nstderr:\n%s", vm.release, script, r.Status, status, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Expect runs a script and reports an error unless it prints want, lines of
// which may be indented.
func (vm *VM) Expect(script, want string) {
	vm.t.Helper()
	want = strings.TrimSpace(indent.ReplaceAllString(want, "\n"))
	if got := vm.Run(script); got != want {
		vm.Fail("\n%s\nprints:\n%s\nwant:\n%s", script, got, want)
	}
}

var indent = regexp.MustCompile(`\n\t+`)

// Fail reports an error about the machine.
func (vm *VM) Fail(format string, args ...any) {
	vm.t.Helper()
	vm.t.Errorf("in the machine (%s): "+format, append([]any{vm.release}, args...)...)
}

// Write makes a file, mode 0644, with the folders above it. A file that is
// there keeps its mode.
func (vm *VM) Write(name, content string) {
	vm.t.Helper()
	q := "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
	if r := vm.try("mkdir -p \"$(dirname "+q+")\" && cat > "+q, []byte(content)); r.Status != 0 {
		vm.t.Fatalf("writing %s in the machine: %s", name, r.Stderr)
	}
}

// Use makes iptables and ip6tables mean the backend, as update-alternatives does.
func (vm *VM) Use(b host.Backend) {
	vm.t.Helper()
	vm.Run(fmt.Sprintf(`for c in {iptables,ip6tables}{,-save,-restore}; do
		f=${c%%%%-*}; ln -sfn "/usr/sbin/$f-%s${c#$f}" "/etc/alternatives/$c"; done`, b))
}

// Enable has the script /etc/init.d/NAME be started at boot, after the services
// that were enabled before it. A new machine has netfilter-persistent enabled.
func (vm *VM) Enable(name string) {
	vm.t.Helper()
	vm.Run(fmt.Sprintf(`cd /etc/rc2.d && [ -x ../init.d/%[1]s ] && set -- S* && ln -s ../init.d/%[1]s S$((10 + $#))%[1]s`, name))
}

// Disable takes back what Enable did.
func (vm *VM) Disable(name string) {
	vm.t.Helper()
	vm.Run("rm /etc/rc2.d/S*" + name)
}

// Reboot shuts the machine down in order and boots it from its disk.
func (vm *VM) Reboot() {
	vm.t.Helper()
	if err := wire.Write(vm.port, wire.Request{Reboot: true}); err != nil {
		vm.t.Fatalf("rebooting: %v", err)
	}
	select {
	case <-vm.ended:
	case <-time.After(runTime):
		vm.t.Fatalf("rebooting: the machine did not end within %v", runTime)
	}
	vm.kill()
	vm.start()
}

// PowerCut ends the machine at once, as when the power fails, and boots it
// from its disk: what the guest had not yet written is lost.
func (vm *VM) PowerCut() {
	vm.t.Helper()
	vm.kill()
	vm.start()
}

// BootLog is what the steps of the last boot said, and how each ended.
func (vm *VM) BootLog() string {
	vm.t.Helper()
	return vm.Run("cat /run/vmlab/boot.log")
}

// BootFailed lists the steps of the last boot that failed; "" if none.
func (vm *VM) BootFailed() string {
	vm.t.Helper()
	return vm.Run("cat /run/vmlab/failed")
}

// Console is all that the machine printed on its console, over all boots.
func (vm *VM) Console() string {
	text, err := os.ReadFile(vm.path("console"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Release is the kernel's release, as uname -r prints it.
func (vm *VM) Release() string { return vm.release }
