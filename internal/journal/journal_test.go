package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

func step(i int) Record {
	return Record{Kind: Intent, Index: i, Before: &Before{Folders: []string{"/etc/d"}}, Step: &change.Step{
		Addresses: []string{"sysctl.x"}, Sysctl: &change.SysctlStep{Key: "x", Before: "1", After: "2"},
	}}
}

// begin opens a store and a journal in it.
func begin(t *testing.T) (*Store, *Journal) {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return s, create(t, s)
}

func create(t *testing.T, s *Store) *Journal {
	t.Helper()
	j, err := s.Create(Header{Summary: "1 to add", Steps: 2, BootID: "b", Time: time.Now().UTC()}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func write(t *testing.T, j *Journal, records ...Record) {
	t.Helper()
	for _, r := range records {
		if err := j.Append(r, true); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLife(t *testing.T) {
	s, j := begin(t)
	outcome := func() Transaction {
		tx, err := s.Load(1)
		if err != nil || tx.Err != nil {
			t.Fatal(err, tx.Err)
		}
		return tx
	}
	if tx := outcome(); tx.Outcome != Running || tx.Summary != "1 to add" || tx.ID != 1 {
		t.Errorf("begun: %+v", tx)
	}
	write(t, j, step(0), Record{Kind: Done}, step(1))
	tx := outcome()
	if len(tx.Steps) != 2 || !tx.Steps[0].Done || tx.Steps[1].Done || tx.Steps[0].Sysctl.Before != "1" || tx.Steps[0].Before.Folders[0] != "/etc/d" {
		t.Errorf("steps: %+v", tx.Steps)
	}
	write(t, j, Record{Kind: Armed, Deadline: 7})
	if tx := outcome(); tx.Outcome != Waiting || tx.Deadline != 7 {
		t.Errorf("armed: %+v", tx)
	}
	write(t, j, Record{Kind: Rollback, Reason: "why"}, Record{Kind: Undone, Index: 1}, Record{Kind: Stuck, Index: 0})
	if tx := outcome(); tx.Outcome != Undoing || tx.Reason != "why" || !tx.Steps[1].Undone || tx.Steps[0].Undone {
		t.Errorf("rolling back: %+v", tx)
	}
	if open, err := s.Unfinished(); len(open) != 1 || err != nil {
		t.Errorf("unfinished: %v, %v", open, err)
	}
	write(t, j, Record{Kind: RolledBack})
	j.Close()
	if open, err := s.Unfinished(); len(open) != 0 || err != nil {
		t.Errorf("unfinished: %v, %v", open, err)
	}
	if tx := outcome(); tx.Outcome != WasUndone || tx.Reason != "why" || tx.Ended.IsZero() {
		t.Errorf("ended: %+v", tx)
	}
	if info, _ := os.Stat(s.Path(1)); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if info, _ := os.Stat(s.dir); info.Mode().Perm() != 0o700 {
		t.Errorf("folder's mode %v", info.Mode())
	}
}

// A journal cut off after any byte is read as the whole records that it holds,
// and can be gone on with.
func TestTorn(t *testing.T) {
	s, j := begin(t)
	write(t, j, step(0), Record{Kind: Done}, step(1))
	j.Close()
	data, _ := os.ReadFile(s.Path(1))
	header := bytes.IndexByte(data, '\n') + 1
	for n := header; n <= len(data); n++ {
		for _, fill := range []string{"", "\x00\x00\x00\n"} { // lost data of the right length
			if fill != "" && data[n-1] != '\n' {
				continue
			}
			os.WriteFile(s.Path(1), append(bytes.Clone(data[:n]), fill...), 0o600)
			j, tx, err := s.Reopen(1, 0)
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			if want := bytes.Count(data[header:n], []byte(`"kind":"step"`)); len(tx.Steps) > want {
				t.Errorf("%d bytes: %d steps", n, len(tx.Steps))
			}
			write(t, j, Record{Kind: RolledBack})
			j.Close()
			if tx, err := s.Load(1); err != nil || tx.Err != nil || tx.Outcome != WasUndone {
				t.Fatalf("%d bytes, gone on with: %+v, %v", n, tx, err)
			}
		}
	}
}

func TestNotAJournal(t *testing.T) {
	head := `{"kind":"begin","header":{"format_version":1,"id":1}}` + "\n"
	for name, text := range map[string]string{
		"empty":            "",
		"no header":        `{"kind":"step"}` + "\n",
		"another version":  strings.Replace(head, `_version":1`, `_version":2`, 1),
		"two headers":      head + head,
		"a gap":            head + `{"kind":"step","index":1,"step":{}}` + "\n",
		"damage inside":    head + "\x00\x00\n" + `{"kind":"done"}` + "\n",
		"unknown kind":     head + `{"kind":"x"}` + "\n",
		"after the end":    head + `{"kind":"commit"}` + "\n" + `{"kind":"commit"}` + "\n",
		"never began":      head + `{"kind":"done","index":4}` + "\n",
		"a negative index": head + `{"kind":"done","index":-1}` + "\n",
	} {
		tx, _ := Parse([]byte(text))
		if tx.Err == nil || tx.Outcome != Unreadable || !tx.Outcome.Open() {
			t.Errorf("%s: %+v", name, tx)
		}
	}
	s, j := begin(t)
	j.Close()
	os.WriteFile(s.Path(1), []byte("\x00garbage\n\n"), 0o600)
	if open, err := s.Unfinished(); err != nil || len(open) != 1 || open[0].Err == nil || open[0].ID != 1 {
		t.Errorf("an unreadable journal must count as unfinished: %+v, %v", open, err)
	}
}

func FuzzParse(f *testing.F) {
	head := `{"kind":"begin","header":{"format_version":1,"id":1}}` + "\n"
	f.Add([]byte(head + `{"kind":"step","step":{"sysctl":{"key":"x"}}}` + "\n" + `{"kind":"done"}` + "\n"))
	f.Add([]byte(head + `{"kind":"armed","deadline":5}` + "\n" + `{"kind":"commit"}` + "\n{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tx, whole := Parse(data)
		if whole < 0 || whole > int64(len(data)) {
			t.Fatalf("%d of %d bytes", whole, len(data))
		}
		if tx.Err != nil {
			return
		}
		// What is whole says the same, and says it alone.
		again, n := Parse(data[:whole])
		a, _ := json.Marshal(tx)
		b, _ := json.Marshal(again)
		if n != whole || !bytes.Equal(a, b) {
			t.Fatalf("%s is not %s", a, b)
		}
	})
}

// What others could have written is not carried out.
func TestUntrusted(t *testing.T) {
	s, j := begin(t)
	j.Close()
	os.Chmod(s.Path(1), 0o666)
	if open, _ := s.Unfinished(); len(open) != 1 || open[0].Err == nil || !strings.Contains(open[0].Err.Error(), "chmod go-w") {
		t.Errorf("a journal that others can write: %+v", open)
	}
	if _, _, err := s.Reopen(1, 0); err == nil {
		t.Error("reopened a journal that others can write")
	}
	os.Remove(s.Path(1))
	os.Symlink("/etc/passwd", s.Path(1))
	if open, _ := s.Unfinished(); len(open) != 1 || open[0].Err == nil {
		t.Errorf("a symbolic link: %+v", open)
	}
	os.Chmod(s.dir, 0o777)
	if _, err := View(s.dir); err == nil {
		t.Error("a folder that others can write was opened")
	}
	if _, err := View(filepath.Join(s.dir, "none")); err != nil {
		t.Errorf("no folder: %v", err)
	}
}

func TestPrune(t *testing.T) {
	s, j := begin(t)
	j.Close() // 1 stays open
	for range 6 {
		j := create(t, s)
		write(t, j, Record{Kind: Commit})
		j.Close()
	}
	if err := s.Prune(3); err != nil {
		t.Fatal(err)
	}
	all, err := s.All()
	var ids []int
	for _, tx := range all {
		ids = append(ids, tx.ID)
	}
	if err != nil || len(ids) != 4 || ids[0] != 1 || ids[1] != 5 || ids[3] != 7 {
		t.Errorf("kept %v, %v", ids, err)
	}
	if _, err := s.Load(2); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pruned: %v", err)
	}
	if j := create(t, s); j.ID != 8 {
		t.Errorf("next is %d", j.ID)
	}
}

// TestLastCommit finds the newest transaction that stayed, behind one that was
// taken back and one that is not finished.
func TestLastCommit(t *testing.T) {
	s, j := begin(t)
	last := func() time.Time {
		t.Helper()
		at, err := s.LastCommit()
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	if at := last(); !at.IsZero() {
		t.Errorf("before any transaction ended, LastCommit is %v", at)
	}
	when := time.Date(2024, 2, 29, 1, 2, 3, 0, time.UTC)
	write(t, j, step(0), Record{Kind: Commit, Time: when})
	j.Close()
	j = create(t, s)
	write(t, j, Record{Kind: RolledBack, Time: when.Add(time.Hour)})
	j.Close()
	j = create(t, s)
	write(t, j, step(0))
	defer j.Close()
	if at := last(); !at.Equal(when) {
		t.Errorf("LastCommit is %v, want %v", at, when)
	}
	if at, err := (&Store{dir: filepath.Join(t.TempDir(), "none")}).LastCommit(); err != nil || !at.IsZero() {
		t.Errorf("without a folder, LastCommit is %v, %v", at, err)
	}
}

// A command of a killed process that still runs keeps recovery waiting.
func TestReopenWaits(t *testing.T) {
	s, j := begin(t)
	cmd := exec.Command("sleep", "0.3")
	cmd.ExtraFiles = []*os.File{j.File()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	j.Close()
	begun := time.Now()
	if _, _, err := s.Reopen(1, 20*time.Millisecond); err == nil || !strings.Contains(err.Error(), "still held") {
		t.Errorf("got %v", err)
	}
	j, _, err := s.Reopen(1, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	j.Close()
	if took := time.Since(begun); took < 200*time.Millisecond {
		t.Errorf("reopened after %s, while the command still ran", took)
	}
}

// A full disk shows before anything begins; what was reserved then suffices.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=700"); err != nil {
		testhost.Lacks(t, "mounting a tmpfs, which takes root:", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s, err := Open(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(Header{Steps: 2}, 1<<20); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("got %v", err)
	}
	if entries, _ := os.ReadDir(s.dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	j, err := s.Create(Header{Steps: 2}, 2000)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 1<<20), 0o600)
	write(t, j, step(0), step(1), Record{Kind: Rollback, Reason: strings.Repeat("x", 5000)}, Record{Kind: RolledBack})
	if tx, err := s.Load(1); err != nil || tx.Outcome != WasUndone || len(tx.Reason) > maxReason+3 {
		t.Errorf("%+v, %v", tx.Outcome, err)
	}
}

// TestBytes: a record holds any bytes, those that are not UTF-8 and those that
// stand for them.
func TestBytes(t *testing.T) {
	s, j := begin(t)
	for i, text := range []string{"Gr\xf6\xdfe\n", "\xff\xfe\x00", "é \ufffd \U0010ff80 \U0010ffff", "\xed\xa0\x80", strings.Repeat("\xc3", 3) + "\xa4"} {
		write(t, j, Record{Kind: Intent, Index: i, Before: &Before{Rules: []RulesBefore{{Tables: []xtables.TableLines{{Name: text, Lines: []string{text}}}}}, Module: &ModuleBefore{Sysctls: map[string]string{text: text}}},
			Step: &change.Step{File: &change.FileStep{Before: host.File{Content: text}}}})
		tx, err := s.Load(1)
		if err != nil || tx.Err != nil {
			t.Fatal(err, tx.Err)
		}
		got := tx.Steps[i]
		if got.File.Before.Content != text || got.Before.Module.Sysctls[text] != text || got.Before.Rules[0].Tables[0].Name != text || got.Before.Rules[0].Tables[0].Lines[0] != text {
			t.Errorf("%q is read back as %+v", text, got)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\xffb\U0010ff80")
	f.Fuzz(func(t *testing.T, s string) {
		line, err := marshal(Record{Reason: s})
		if err != nil {
			t.Fatal(err)
		}
		var r Record
		if err := unmarshal(line, &r); err != nil || r.Reason != s {
			t.Errorf("%q becomes %q: %v", s, r.Reason, err)
		}
	})
}
