package nftconf

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// TestKeepRefuses: what is not known of the files is not saved, nor guessed.
func TestKeepRefuses(t *testing.T) {
	const file = "table inet fw {\n\tchain in {\n\t\tiif lo accept\n\t\tct state new accept\n\t\tlog\n\t}\n}\n"
	rule := func(handle uint64, text string) host.NFTRule { return host.NFTRule{Handle: handle, Text: text} }
	jump := host.NFTRule{Text: "jump CTPLAN-in", Exprs: host.NFTProgram{{Name: "immediate", Verdict: "jump", Chain: "CTPLAN-in"}}}
	table := func(rules ...host.NFTRule) []host.NFTTable {
		return []host.NFTTable{{Family: "inet", Name: "fw", Chains: []host.NFTChain{{Name: "in", Rules: rules}, {Name: "CTPLAN-in"}}}}
	}
	lo, state, log := rule(1, `iif "lo" accept`), rule(2, "ct state new accept"), rule(3, "log")
	hand, far := rule(4, "udp dport 53 accept"), rule(5, "udp dport 123 accept")
	for name, tt := range map[string]struct {
		file          string
		before, after []host.NFTTable
		own, refused  string
	}{
		"before the rule behind it": {file, table(lo, state, log), table(lo, jump, log), "insert rule inet fw in index 1 jump CTPLAN-in\n", "[]"},
		"first":                     {file, table(lo, state, log), table(jump, lo, log), "insert rule inet fw in jump CTPLAN-in\n", "[]"},
		"last":                      {file, table(lo, state, log), table(lo, log, jump), "add rule inet fw in jump CTPLAN-in\n", "[]"},
		"behind the rule before it": {file, table(lo, state, hand, log), table(lo, jump, hand, log), "add rule inet fw in index 0 jump CTPLAN-in\n", "[]"},
		"among rules by hand": {file, table(lo, hand, state, far, log), table(lo, hand, jump, far, log), "",
			"[{/etc/a.nft:2 the rules there are not those of the kernel, so it is not known where among them the jump to CTPLAN-in stands}]"},
		"a rule of another spelling": {strings.Replace(file, "ct state new accept", "ct state 8 accept", 1), table(lo, state, log), table(lo, log), "",
			"[{/etc/a.nft:4 it stands where the kernel has the rule with handle 2, ct state new accept, and reads otherwise}]"},
		"a chain in no file": {strings.Replace(file, "chain in", "chain out", 1), table(lo, state, log), table(lo, jump, log), "",
			"[{chain inet fw in no file that nftables.service loads has it, so the jump to CTPLAN-in cannot be saved}]"},
		"a file not read": {file + "include \"/etc/x\"\n", table(lo, state, log), table(lo, jump, log), "",
			"[{/etc/a.nft what nftables.service loads is not known whole: /etc/a.nft:8: it includes /etc/x, which was not read}]"},
	} {
		conf := Load([]string{"/etc/a.nft"}, []host.NFTFile{Parse(host.File{Path: "/etc/a.nft", Exists: true, Content: tt.file})})
		edit, refused := Keep(&conf, tt.before, tt.after)
		if fmt.Sprint(refused) != tt.refused || !strings.HasSuffix(edit.Own, tt.own) {
			t.Errorf("%s: %v\n%s", name, refused, edit.Own)
		}
	}
}
