package vmtest

import (
	"fmt"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// stage is what a host has come through.
type stage string

// The stages, in the order of the table.
const (
	applied        stage = "apply"
	serviceRestart stage = "service restart"
	rebooted       stage = "reboot"
	powerCut       stage = "power cut in mid-apply"
)

var stages = []stage{applied, serviceRestart, rebooted, powerCut}

// cell is one combination of the matrix.
type cell struct {
	kernel  vmlab.Kernel
	backend live.Backend
	mode    string
	stage   stage
}

// ran is what became of a cell; several runs add up.
type ran struct {
	ok   bool
	runs int
	time time.Duration
	note string // of the last
}

func (r ran) String() string {
	if r.runs == 0 {
		return "NOT RUN"
	}
	text := fmt.Sprintf("%.1f s", r.time.Seconds())
	if r.runs > 1 {
		text = fmt.Sprintf("%d× in %s", r.runs, text)
	}
	if !r.ok {
		return "FAILED " + text
	}
	if r.note != "" {
		text += ", " + r.note
	}
	return "ok " + text
}

// table holds the cells that ran.
var table = struct {
	sync.Mutex
	cells map[cell]ran
}{cells: map[cell]ran{}}

// record notes that a cell ran.
func record(c cell, ok bool, took time.Duration, note string) {
	table.Lock()
	defer table.Unlock()
	r := table.cells[c]
	table.cells[c] = ran{ok: ok && (r.ok || r.runs == 0), runs: r.runs + 1, time: r.time + took, note: note}
}

// tableText is the matrix for people, whether any cell ran, and whether all did
// and were well.
func tableText() (text string, any, ok bool) {
	table.Lock()
	defer table.Unlock()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "KERNEL\tBACKEND\tMODE")
	for _, s := range stages {
		fmt.Fprint(w, "\t", strings.ToUpper(string(s)))
	}
	ok = true
	for _, k := range vmlab.Kernels() {
		for _, b := range backends {
			for _, mode := range modes {
				fmt.Fprintf(w, "\n%s\t%s\t%s", k, b, mode)
				for _, s := range stages {
					r := table.cells[cell{k, b, mode, s}]
					ok = ok && r.ok
					fmt.Fprint(w, "\t", r)
				}
			}
		}
	}
	fmt.Fprintln(w)
	w.Flush()
	return b.String(), len(table.cells) > 0, ok
}
