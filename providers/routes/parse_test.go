package routes

import (
	"net/netip"
	"testing"
)

func netipPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// FuzzParse holds that no message of the kernel, however broken, is more than
// not understood, and that what is understood is whole.
func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0, 8, 0, 10, 0, 2, 0, 0, 0, 8, 0, 16, 0, 255, 255, 255, 255, 8, 0, 15, 0, 200, 0, 0, 0})
	f.Add([]byte{10, 64, 64, 1, 0, 0, 0, 2, 2, 0, 0, 0, 8, 0, 4, 0, 2, 0, 0, 0, 5, 0, 3, 0, 108})
	f.Add([]byte{2, 32, 0, 0, 200, 3, 0, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 1, 24, 0, 9, 0, 8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) < headRule {
			return
		}
		if r, ok := parseRule(msg); ok {
			if r.Action == "" || r.From.IsValid() && r.From != r.From.Masked() || r.To.IsValid() && r.To != r.To.Masked() {
				t.Errorf("rule %+v", r)
			}
		}
		if r, ok := parseRoute(msg, map[uint32]string{1: "a", 2: "b"}); ok && (!r.Prefix.IsValid() || r.Type == "") {
			t.Errorf("route %+v", r)
		}
		hasBus(string(msg), 6)
	})
}
