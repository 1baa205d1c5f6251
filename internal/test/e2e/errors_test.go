package e2e

import (
	"bufio"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/pages"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/declared"
	live "github.com/ctplan/ctplan/planner/host"
)

// explained expects docs/errors.md to quote a text that a system has printed.
func explained(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(pages.Read(t, repository, "docs/errors.md"), text) {
		t.Errorf("docs/errors.md does not quote %q", text)
	}
}

// TestErrorTableFull fills a table, and reads what this kernel says of it and
// what a program on the host gets to see.
func TestErrorTableFull(t *testing.T) {
	nstest.Machine(t)
	h := newHost(t, live.NFT, "resolver-1")
	h.sh("iptables -A INPUT -p tcp -m state --state RELATED,ESTABLISHED -j ACCEPT")
	if err := os.WriteFile(nstest.Max, []byte("2000"), 0); err != nil {
		t.Fatal(err)
	}
	log, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		testhost.Lacks(t, "reading the kernel's log: ", err)
	}
	defer unix.Close(log)
	if _, err := unix.Seek(log, 0, unix.SEEK_END); err != nil {
		t.Fatal(err)
	}
	f := h.flood()
	if !strings.HasSuffix(f.Error, "operation not permitted") {
		t.Errorf("a program that sends gets to see %q", f.Error)
	}
	explained(t, "Operation not permitted")

	record := make([]byte, 8192)
	for deadline := time.Now().Add(5 * time.Second); ; {
		n, err := unix.Read(log, record)
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatalf("the kernel's log has no line on a full table: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
			continue
		}
		_, text, _ := strings.Cut(string(record[:n]), ";")
		if text, _, _ = strings.Cut(text, "\n"); strings.Contains(text, "table full") {
			explained(t, regexp.MustCompile("netns [0-9]+").ReplaceAllString(text, "netns 4026531840"))
			return
		}
	}
}

// TestErrorRace has two programs change a table of iptables-legacy that do not
// see each other's lock, until one of them is told so.
func TestErrorRace(t *testing.T) {
	h := newHost(t, live.Legacy, "web-1")
	var said sync.Map
	var both sync.WaitGroup
	for _, who := range []string{"1", "2"} {
		both.Go(func() {
			out, _ := h.Command("bash", "-c", `export XTABLES_LOCKFILE=/run/lock`+who+`; exec 2>&1
				for i in $(seq 3000); do
					for do in -A -D; do iptables $do INPUT -s 192.0.2.`+who+` -j ACCEPT 2>&1 | grep -v 'Bad rule' && touch /run/told; done
					[ ! -e /run/told ] || exit 0
				done`).Output()
			for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
				said.Store(lines.Text(), true)
			}
		})
	}
	both.Wait()
	told := 0
	said.Range(func(text, _ any) bool {
		told++
		explained(t, text.(string))
		return true
	})
	if told == 0 {
		t.Error("nobody was told that the table is being changed by another")
	}
}

// TestErrorBlocks has a line on every reason for which a plan can be blocked.
func TestErrorBlocks(t *testing.T) {
	page := pages.Read(t, repository, "docs/errors.md")
	never := []declared.Risk{declared.RiskNoConntrack, declared.RiskUnshownRules, declared.RiskNoService}
	rows := map[string]bool{}
	for line := range strings.Lines(page) {
		if first, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | "); ok && strings.HasPrefix(line, "| `") {
			for risk := range strings.SplitSeq(first, ", ") {
				rows[risk] = true
			}
		}
	}
	for _, risk := range append(never, declared.Risks...) {
		if !rows["`"+string(risk)+"`"] {
			t.Errorf("docs/errors.md has no row on %s", risk)
		}
	}
}
