package planfile

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

func sample() *Plan {
	pos := declared.Pos{File: "main.hcl", Line: 3}
	return &Plan{
		FormatVersion: planner.FormatVersion,
		CtplanVersion: "devel",
		Created:       time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC),
		ConfigDigest:  "sha256:00",
		Desired: declared.Desired{
			Block: "web", Source: pos, Mode: declared.Notrack, ModeSource: pos,
			Notrack: []declared.Traffic{{
				Name: "dns", Protocol: "udp", Direction: declared.Both, Families: host.Families,
				Remote:      []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")},
				RemotePorts: []host.PortRange{{From: 53, To: 53}}, Interface: "eth+", Source: pos,
			}},
			StatefulRules: declared.RefuseStateful, AllowRisk: []declared.Risk{declared.RiskNAT},
			Families: host.Families, Files: declared.Files{Sysctl: "/etc/sysctl.d/x.conf"},
			InitScripts: []string{"/etc/init.d/iptables"},
		},
		Snapshot: &snapshot.Snapshot{
			FormatVersion: planner.FormatVersion,
			Host:          host.Host{Name: "web-1", Kernel: "6.1", CPUs: 1, Memory: 1 << 30, PageSize: 4096, PointerSize: 8},
			Conntrack:     host.Conntrack{Kind: host.ConntrackAbsent},
			Sysctls:       map[string]host.Sysctl{},
			Files:         []snapshot.File{{Kind: snapshot.KindSysctl, File: host.File{Path: "/etc/sysctl.conf", Exists: true, Content: "\xff", Mode: 0o644}}},
		},
	}
}

func write(t *testing.T, p *Plan) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p")
	if err := Write(path, p); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRoundTrip(t *testing.T) {
	want := sample()
	path := write(t, want)
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(snapshot.Rules{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("round trip (-want +got):\n%s", d)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if !Looks(path) {
		t.Error("Looks does not know a plan file")
	}
}

// TestNoInitScripts: none at all is not the same as those that are found.
func TestNoInitScripts(t *testing.T) {
	for _, scripts := range [][]string{nil, {}} {
		p := sample()
		p.Desired.InitScripts = scripts
		got, err := Read(write(t, p))
		if err != nil {
			t.Fatal(err)
		}
		if (got.Desired.InitScripts == nil) != (scripts == nil) {
			t.Errorf("%#v came back as %#v", scripts, got.Desired.InitScripts)
		}
	}
}

// TestWriteMode: not even a umask of 0 opens the file, nor an old mode.
func TestWriteMode(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := write(t, sample())
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, sample()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

// TestWriteSpares: --out main.hcl must not cost anybody a configuration.
func TestWriteSpares(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	target := put("target", "x")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		put("main.hcl", `conntrack "a" {}`),
		put("package.json", `{"name":"x"}`),
		put("snapshot.json", `{"format_version":1,"host":{}}`),
		put("binary", "\x00\x01"),
		dir, link,
	} {
		if err := Write(path, sample()); !errors.Is(err, snapshot.ErrForeign) {
			t.Errorf("Write over %s: %v, want ErrForeign", filepath.Base(path), err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, "main.hcl")); err != nil || string(data) != `conntrack "a" {}` {
		t.Errorf("main.hcl is %q, %v", data, err)
	}
	if err := Write(put("empty", ""), sample()); err != nil {
		t.Errorf("Write over an empty file: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 7 {
		t.Errorf("%d files are left, want 7 and no temporary one", len(entries))
	}
}

func TestReadRefuses(t *testing.T) {
	path := write(t, sample())
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(old, new string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("the sample has no %q", old)
		}
		return bytes.Replace(good, []byte(old), []byte(new), 1)
	}
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"empty":         {nil, "empty"},
		"truncated":     {good[:len(good)-20], "truncated"},
		"hcl":           {[]byte(`conntrack "a" {}`), "not a ctplan plan file"},
		"next version":  {edit(`"format_version": 1`, `"format_version": 7`), "format version 7"},
		"unknown field": {edit(`"config_digest"`, `"x": 1, "config_digest"`), `unknown field "x"`},
		"unknown deep":  {edit(`"interface"`, `"x": 1, "interface"`), `unknown field "x"`},
		"snapshot":      {[]byte(`{"format_version":1,"host":{}}`), "not a ctplan plan file"},
		"no snapshot":   {edit(string(good[bytes.Index(good, []byte(`"snapshot"`)):]), `"snapshot": null}`), "no snapshot"},
		"bad snapshot":  {edit(`"page_size": 4096`, `"page_size": 0`), "snapshot is not valid"},
		"name":          {edit(`"name": "dns"`, `"name": "a\nb"`), "not a label"},
		"protocol":      {edit(`"protocol": "udp"`, `"protocol": "udp -j DROP"`), "protocol"},
		"interface":     {edit(`"interface": "eth+"`, `"interface": "a\" b"`), "interface"},
		"direction":     {edit(`"direction": "both"`, `"direction": "up"`), "direction"},
		"address":       {edit(`"192.0.2.0/24"`, `"nowhere"`), "not a ctplan plan file"},
		"no address":    {edit(`"192.0.2.0/24"`, `""`), "address"},
		"ports":         {edit(`"from": 53`, `"from": 54`), "ports"},
		"port range":    {edit(`"from": 53`, `"from": 70000`), "not a ctplan plan file"},
		"mode":          {edit(`"mode": "notrack"`, `"mode": "off"`), "mode"},
		"tuned":         {edit(`"mode": "notrack"`, `"mode": "tuned"`), "without max"},
		"policy":        {edit(`"stateful_rules": "refuse"`, `"stateful_rules": "x"`), "stateful_rules"},
		"path":          {edit(`"/etc/sysctl.d/x.conf"`, `"x.conf"`), "path"},
		"init script":   {edit(`"/etc/init.d/iptables"`, `"/etc/a\nb"`), "path"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "p")
			if err := os.WriteFile(path, test.data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(path); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestReadTrust(t *testing.T) {
	path := write(t, sample())
	for _, mode := range []os.FileMode{0o620, 0o602, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "others can write it") {
			t.Errorf("mode %o: got %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err != nil {
		t.Errorf("a file that others can read: %v", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Errorf("another's file: got %v", err)
		}
	}
	if _, err := Read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: got %v", err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(fifo); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a FIFO: got %v", err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
}

func TestLooks(t *testing.T) {
	for content, want := range map[string]bool{
		"":                              false,
		"  \n\t{":                       true,
		`{"format_version": 99`:         true,
		`conntrack "a" {}`:              false,
		"# {\n":                         false,
		"\x7fELF{":                      false,
		strings.Repeat(" ", 2000) + "{": false,
	} {
		path := filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := Looks(path); got != want {
			t.Errorf("Looks(%.20q) = %v", content, got)
		}
	}
	if Looks(t.TempDir()) || Looks("/nonexistent") {
		t.Error("what is no file looks like a plan")
	}
}
