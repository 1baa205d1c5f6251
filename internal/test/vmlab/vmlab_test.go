package vmlab

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/internal/test/vmlab/wire"
)

// TestPin holds a cache that was tampered with to being refused.
func TestPin(t *testing.T) {
	dir := t.TempDir()
	if _, err := readPin(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a pin: %v", err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a.deb", "abc")
	write("pin.json", `{"Suite": "bookworm", "Packages": {"a.deb": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}`)
	if _, err := readPin(dir); err != nil {
		t.Fatal(err)
	}
	write("a.deb", "abd")
	if _, err := readPin(dir); err == nil || !strings.Contains(err.Error(), "a.deb") {
		t.Errorf("a changed package: %v", err)
	}
	os.Remove(filepath.Join(dir, "a.deb"))
	if _, err := readPin(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing package: %v, which would fetch silently", err)
	}
}

// TestMake holds what is made to being there as a whole or not at all.
func TestMake(t *testing.T) {
	c := cache{t.TempDir()}
	name := c.path("sub", "made")
	err := c.make(name, func(tmp string) error {
		return errors.Join(os.WriteFile(tmp, []byte("half"), 0o644), errors.New("no"))
	})
	if _, stat := os.Lstat(name); err == nil || !errors.Is(stat, fs.ErrNotExist) {
		t.Fatalf("making failed: %v, and what is there: %v", err, stat)
	}
	for _, text := range []string{"first", "second"} {
		if err := c.make(name, func(tmp string) error { return os.WriteFile(tmp, []byte(text), 0o644) }); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := os.ReadFile(name); string(got) != "first" {
		t.Errorf("made %q, want what was made first", got)
	}
}

// TestSlots holds machines to two at once.
func TestSlots(t *testing.T) {
	c := cache{t.TempDir()}
	first, err := c.slot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.slot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer second()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.slot(over); err == nil {
		t.Fatal("a third machine may run")
	}
	first()
	third, err := c.slot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	third()
}

// TestCpio has busybox or cpio read what cpioWriter writes.
func TestCpio(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		testhost.Lacks(t, "needs cpio")
	}
	var b bytes.Buffer
	w := cpioWriter{w: &b}
	w.dir("folder")
	w.file("folder/odd", []byte("12345"))
	w.file("folder/empty", nil)
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(cpio, "-id", "--quiet")
	cmd.Dir, cmd.Stdin = dir, &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, want := range map[string]string{"folder/odd": "12345", "folder/empty": ""} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestOrder holds modules to being loaded after what they need, once.
func TestOrder(t *testing.T) {
	d := dependencies{
		"kernel/a/virtio_blk.ko.xz":  {"kernel/a/virtio-ring.ko", "kernel/a/virtio.ko"},
		"kernel/a/virtio_pci.ko":     {"kernel/a/virtio-ring.ko", "kernel/a/virtio.ko"},
		"kernel/a/virtio-ring.ko":    {"kernel/a/virtio.ko"},
		"kernel/a/virtio.ko":         nil,
		"kernel/a/virtio_balloon.ko": {"kernel/a/virtio.ko"},
	}
	want := []string{"kernel/a/virtio.ko", "kernel/a/virtio-ring.ko", "kernel/a/virtio_pci.ko", "kernel/a/virtio_blk.ko.xz"}
	if got := d.order([]string{"virtio_pci", "ext4", "virtio_blk", "virtio_ring"}); !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

// FuzzFrame holds the reading of frames to any bytes: an error or an object,
// and no memory beyond the limit.
func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	if err := wire.Write(&b, wire.Request{ID: 1, Script: "true", Stdin: []byte{0, 255}, Seconds: 1}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Add([]byte{0, 0, 0, 2, '{'})
	f.Fuzz(func(t *testing.T, frame []byte) {
		var r wire.Request
		if wire.Read(bytes.NewReader(frame), &r) != nil {
			return
		}
		var again bytes.Buffer
		if err := wire.Write(&again, r); err != nil {
			t.Fatal(err)
		}
		var same wire.Request
		if err := wire.Read(&again, &same); err != nil || same.ID != r.ID || same.Script != r.Script || !bytes.Equal(same.Stdin, r.Stdin) {
			t.Fatalf("%+v came back as %+v, %v", r, same, err)
		}
	})
}

// TestModulesLoad runs the machines' modules-load on a root of its own, with a
// modprobe that says what it is asked for.
func TestModulesLoad(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		testhost.Lacks(t, "needs bash")
	}
	script, err := guest.ReadFile("guest/modules-load")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for name, text := range map[string]string{
		"usr/lib/modules-load.d/20-b.conf": "masked\n",
		"usr/lib/modules-load.d/30-c.conf": "# comment\nlast a=1 b=2",
		"etc/modules-load.d/20-b.conf":     "# comment\n\nsecond\nthird\n",
		"etc/modules-load.d/10-a.conf":     "first\n",
		"etc/modules-load.d/40-d.txt":      "other\n",
	} {
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	local := strings.NewReplacer("/usr/lib /usr/local/lib /run /etc", root+"/usr/lib "+root+"/run "+root+"/etc").Replace(string(script))
	cmd := exec.Command(bash, "-c", "modprobe() { echo \"${@:2}\"; [ \"$2\" != third ]; }\n"+local)
	out, err := cmd.Output()
	if want := "first\nsecond\nthird\n20-b.conf: third did not load\nlast a=1 b=2\n"; string(out) != want || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, loads:\n%swant exit status 1 and:\n%s", err, out, want)
	}
}
