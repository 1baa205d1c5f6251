package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/golden"
)

var (
	consoleBlock = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")
	hclBlock     = regexp.MustCompile("(?ms)^```hcl\n(.*?)^```$")
)

// TestReadme runs the commands of README.md's console blocks on a default-drop
// server, one after the other, and holds their output against what is printed
// there. A file that is shown by cat is made from what is shown.
func TestReadme(t *testing.T) {
	path := filepath.Join("..", "..", "..", "README.md")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, "nft", "web-1")
	h.sh(`
		iptables -P INPUT DROP
		iptables -A INPUT -i lo -j ACCEPT
		iptables -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
		iptables -A INPUT -p tcp --dport 443 -m state --state NEW -j ACCEPT
		mkdir -p /etc/iptables
		iptables-save | grep -v '^#' > /etc/iptables/rules.v4`)
	got := consoleBlock.ReplaceAllStringFunc(string(content), func(block string) string {
		return "```console\n" + h.console(consoleBlock.FindStringSubmatch(block)[1]) + "```"
	})
	if *golden.Update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	same(t, "README.md does not show what commands print; go test ./internal/test/e2e -run TestReadme -update", string(content), got)
	for _, block := range hclBlock.FindAllStringSubmatch(string(content), -1) {
		h.ctplan(exitOK, "validate", h.config(block[1]))
	}
}

// console runs the commands of a block and returns the block as it should be.
func (h *host) console(block string) string {
	h.t.Helper()
	var out strings.Builder
	for step := range strings.SplitSeq(strings.TrimPrefix(block, "$ "), "\n$ ") {
		command, shown, _ := strings.Cut(strings.TrimSuffix(step, "\n"), "\n")
		if file, ok := strings.CutPrefix(command, "cat "); ok {
			h.write("/run/test/"+file, shown+"\n")
		}
		// What ctplan says on the way, of time and progress, is no result.
		cmd := h.Command("unshare", "--uts", "sh", "-c",
			"echo "+h.name+" > /proc/sys/kernel/hostname; PATH=/run/test:$PATH; exec 2>/dev/null; "+command)
		output, _ := cmd.Output() // drift exits 2
		out.WriteString("$ " + command + "\n" + string(output))
	}
	return out.String()
}
