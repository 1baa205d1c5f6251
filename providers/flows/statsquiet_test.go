package flows

import (
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

// TestReadStatsQuietly reads the file, and where there is none asks nobody who
// would have to be loaded first.
func TestReadStatsQuietly(t *testing.T) {
	s, err := ReadStatsQuietly(testhost.Tree(t, map[string]string{procStat: "entries drop early_drop\n00000001 0000000a 00000002\n00000001 00000001 00000000\n"}))
	if err != nil || s == nil || s.From != procStat {
		t.Fatalf("%+v, %v", s, err)
	}
	total := s.Total()
	if total["drop"] != 11 || total["early_drop"] != 2 {
		t.Errorf("counters %v", total)
	}
	if _, ok := total["insert_failed"]; ok {
		t.Error("a counter that the file lacks is taken for known")
	}
	for name, files := range map[string]map[string]string{"no file": {}, "an empty file": {procStat: ""}} {
		if s, err := ReadStatsQuietly(testhost.Tree(t, files)); s != nil || err != nil {
			t.Errorf("%s: %+v, %v; want nothing", name, s, err)
		}
	}
}
