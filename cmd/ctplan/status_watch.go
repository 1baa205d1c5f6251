package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner/suggest"
	"github.com/ctplan/ctplan/providers/kmod"
)

// What draws in place (ECMA-48; the alternate screen and the cursor as xterm
// has them).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	eraseLine   = "\x1b[K"
	eraseBelow  = "\x1b[J"
)

// watchStatus redraws the status until ctx ends, and leaves the last one behind.
func (e *env) watchStatus(ctx context.Context, r *statusReader, interval time.Duration) (err error) {
	s, err := r.read(ctx)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(e.stdout, enterScreen); err != nil {
		return err
	}
	defer func() {
		_, _ = io.WriteString(e.stdout, leaveScreen) // or the terminal is gone
		if s != nil {
			columns, _ := e.terminalSize()
			_ = view.StatusText(e.stdout, *s, e.statusOptions(columns))
		}
	}()
	for {
		columns, rows := e.terminalSize()
		var text bytes.Buffer
		if err := view.StatusText(&text, *s, e.statusOptions(columns)); err != nil {
			return err
		}
		foot := fmt.Sprintf("%s, every %s, until Ctrl-C", s.Time.Format("15:04:05"), interval)
		if _, err := io.WriteString(e.stdout, screen(text.String(), foot, columns, rows)); err != nil {
			return err
		}
		if s.Loaded {
			r.sampler = startSampler(r.root)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
		next, err := r.read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		s = next
	}
}

// screen is a text drawn over the one before: the lines that there is room for,
// and a last line.
func screen(text, foot string, columns, rows int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if room := max(1, rows-1); len(lines) > room {
		foot += fmt.Sprintf("; %d lines more in a taller terminal", len(lines)-room)
		lines = lines[:room]
	}
	var b strings.Builder
	b.WriteString(home)
	for _, l := range lines {
		b.WriteString(l + eraseLine + "\r\n")
	}
	b.WriteString(foot[:min(len(foot), columns)] + eraseLine + eraseBelow)
	return b.String()
}

// Readings of the number of entries.
const (
	sampleEvery = 20 * time.Millisecond
	mostSamples = 4096        // of one window; more are thinned out
	remembered  = time.Minute // of windows
)

// sampler reads the number of entries again and again.
type sampler struct {
	begun time.Time
	quit  chan struct{}
	wg    sync.WaitGroup
	list  []suggest.Reading
}

// startSampler begins a window of readings.
func startSampler(root string) *sampler {
	s := &sampler{begun: time.Now(), quit: make(chan struct{})}
	read := func() {
		n, err := kmod.ReadCount(root)
		if err != nil {
			return // what is not read does not count
		}
		if len(s.list) == mostSamples {
			for i := range mostSamples / 2 {
				s.list[i] = s.list[2*i]
			}
			s.list = s.list[:mostSamples/2]
		}
		s.list = append(s.list, suggest.Reading{After: time.Since(s.begun), Count: n})
	}
	read()
	s.wg.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-s.quit:
				read()
				return
			case <-tick.C:
				read()
			}
		}
	})
	return s
}

// stop ends the window and returns its readings.
func (s *sampler) stop() []suggest.Reading {
	close(s.quit)
	s.wg.Wait()
	return s.list
}

// recent leaves out the windows that are older than what is remembered.
func recent(windows [][]suggest.Reading) [][]suggest.Reading {
	var watched time.Duration
	for i := len(windows) - 1; i >= 0; i-- {
		if w := windows[i]; len(w) > 1 {
			watched += w[len(w)-1].After - w[0].After
		}
		if watched >= remembered {
			return windows[i:]
		}
	}
	return windows
}
