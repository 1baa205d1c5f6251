package view

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// column is one column of a table of text. Its cells are clean.
type column struct {
	head  string
	right bool // numbers
	drop  int  // where the width is too small, the columns with 1 go first, then those with 2; 0: never
	cells []string
}

func (c *column) add(s string) { c.cells = append(c.cells, s) }

func (c *column) width() int {
	n := utf8.RuneCountInString(c.head)
	for _, s := range c.cells {
		n = max(n, utf8.RuneCountInString(s))
	}
	return n
}

const columnGap = 2

// columns writes a table under its heads, without columns for which there is no
// room.
func (t *textWriter) columns(cols ...column) {
	for i, l := range t.rows(t.fitting(cols)...) {
		t.headed(i, l)
	}
}

// headed writes row i of a table, where 0 is the heads.
func (t *textWriter) headed(i int, l string) {
	if l = strings.TrimRight(l, " "); i == 0 {
		l = t.paint(bold, l)
	}
	t.line(l)
}

func (t *textWriter) fitting(cols []column) []column {
	for drop := 0; drop <= 2; drop++ {
		var kept []column
		total := -columnGap
		for _, c := range cols {
			if c.drop == 0 || c.drop > drop {
				kept = append(kept, c)
				total += c.width() + columnGap
			}
		}
		if total <= t.o.Width || drop == 2 {
			return kept
		}
	}
	return cols
}

// rows are the heads and the rows, all of one width.
func (t *textWriter) rows(cols ...column) []string {
	if len(cols) == 0 {
		return nil
	}
	lines := make([]string, len(cols[0].cells)+1)
	for k, c := range cols {
		width := c.width()
		for i := range lines {
			s := c.head
			if i > 0 {
				s = c.cells[i-1]
			}
			pad := strings.Repeat(" ", width-utf8.RuneCountInString(s))
			if c.right {
				s = pad + s
			} else {
				s += pad
			}
			if k > 0 {
				s = strings.Repeat(" ", columnGap) + s
			}
			lines[i] += s
		}
	}
	return lines
}

// commas writes a number with its thousands apart.
func commas(n int64) string {
	s := fmt.Sprint(n)
	from := 0
	if n < 0 {
		from = 1
	}
	for i := len(s) - 3; i > from; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// percent is a part in whole percent: never 0 of something, never 100 of less
// than all.
func percent(part, whole int64) string {
	switch {
	case whole <= 0:
		return "-"
	case part <= 0:
		return "0 %"
	}
	p := int64(math.Round(100 * float64(part) / float64(whole)))
	switch {
	case p == 0:
		return "<1 %"
	case p >= 100 && part < whole:
		p = 99
	}
	return fmt.Sprintf("%d %%", p)
}

// plain is a rate of entries, as exact as anybody wants to know it.
func plain(f float64) string {
	if math.Abs(f) < 9.95 {
		return fmt.Sprintf("%.1f", f)
	}
	return commas(int64(math.Round(f)))
}

// signed is plain with its sign.
func signed(f float64) string {
	if f < 0 {
		return plain(f)
	}
	return "+" + plain(f)
}

// seconds is a short time of watching.
func seconds(s float64) string {
	if s < 10 {
		return fmt.Sprintf("%.1f s", s)
	}
	return span(s)
}

// span is a time in its two largest units.
func span(s float64) string {
	n := int64(math.Round(s))
	units := []struct {
		name  string
		value int64
	}{{"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}}
	for i, u := range units {
		if n < u.value {
			continue
		}
		text := fmt.Sprintf("%d %s", n/u.value, u.name)
		if i+1 < len(units) {
			if rest := n % u.value / units[i+1].value; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return text
	}
	return "0 s"
}

// bytesText is an amount of memory.
func bytesText(n int64) string {
	switch {
	case n >= 10<<30:
		return commas(n>>30) + " GiB"
	case n >= 10<<20:
		return commas(n>>20) + " MiB"
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return commas((n+1023)>>10) + " KiB"
}
