package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/internal/test/pages"
	"github.com/ctplan/ctplan/internal/test/vmlab"
	"github.com/ctplan/ctplan/internal/textdiff"
	live "github.com/ctplan/ctplan/planner/host"
)

// TestDocs runs the console blocks that want a whole machine. Each page begins
// on a machine of its own, with a stateful ruleset of iptables-legacy.
func TestDocs(t *testing.T) {
	t.Parallel()
	const root = "../../.."
	for _, page := range pages.All(t, root) {
		content := pages.Read(t, root, page)
		if !strings.Contains(content, "```console "+pages.VM+"\n") {
			continue
		}
		t.Run(strings.TrimSuffix(page, ".md"), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, vmlab.Kernel61, live.Legacy)
			h.declare("disabled", "hosts", "# hosts")
			got := pages.Rewrite(content, func(b pages.Block) string {
				if b.Language != "console" || b.Word != pages.VM {
					return b.Text
				}
				var out strings.Builder
				for _, step := range pages.Steps(b.Text) {
					out.WriteString("$ " + step.Command + "\n")
					for line := range strings.Lines(h.Run("{ " + step.Command + "; } 2>&1 || true")) {
						out.WriteString(strings.TrimRight(line, " \r\n") + "\n")
					}
				}
				return out.String()
			})
			switch {
			case got == content:
			case *golden.Update:
				if err := os.WriteFile(filepath.Join(root, page), []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("%s does not show what commands print; CTPLAN_VM=1 go test ./internal/test/vmtest -run TestDocs -update\n%s", page,
					textdiff.Unified("page", "printed", content, got, 2))
			}
		})
	}
}
