package run_test

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/run"
)

// TestFollow holds that pieces come while the command runs, end with their
// lines, and are with the rest all that the command printed, once.
func TestFollow(t *testing.T) {
	var got bytes.Buffer
	pieces := 0
	out, err := run.Exec{}.Run(t.Context(), run.Cmd{
		Path: "sh", Args: []string{"-c", `seq 20000; sleep 0.05; head -c 200000 /dev/zero | tr '\0' x; echo; sleep 0.05; printf 'no line'`},
		Follow: func(lines []byte) {
			pieces++
			if lines[len(lines)-1] != '\n' {
				t.Errorf("a piece of half a line: …%q", lines[max(0, len(lines)-20):])
			}
			got.Write(lines)
			clear(lines)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if pieces == 0 {
		t.Error("nothing came before the end")
	}
	got.Write(out)
	var want strings.Builder
	for i := range 20000 {
		want.WriteString(strconv.Itoa(i+1) + "\n")
	}
	want.WriteString(strings.Repeat("x", 200000) + "\nno line")
	if got.String() != want.String() {
		t.Errorf("got %d bytes, want %d", got.Len(), want.Len())
	}
}
