package etc

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// Param is one parameter of a module, as the kernel takes a word apart.
type Param struct {
	Name, Value string
	Bare        bool // there is no "=": no value, not even an empty one
}

// ParamOf takes a word apart (next_arg in lib/cmdline.c): quotes around the
// word or the value go, a "=" in front is no sign of a value.
func ParamOf(word string) Param {
	inner := word
	if strings.HasPrefix(inner, `"`) {
		inner = strings.TrimSuffix(inner[1:], `"`)
	}
	name, value, ok := strings.Cut(inner, "=")
	if !ok || name == "" {
		return Param{Name: inner, Bare: true}
	}
	if strings.HasPrefix(value, `"`) {
		value = strings.TrimSuffix(value[1:], `"`)
	}
	return Param{Name: strings.ReplaceAll(name, "-", "_"), Value: value}
}

// Uint is the value as kstrtouint in lib/kstrtox.c reads it, with the base that
// its beginning tells: 0x is 16, 0 is 8.
func (p Param) Uint() (uint32, bool) {
	digits, base := strings.TrimPrefix(p.Value, "+"), 10
	switch {
	case strings.HasPrefix(digits, "0x"), strings.HasPrefix(digits, "0X"):
		digits, base = digits[2:], 16
	case len(digits) > 1 && digits[0] == '0':
		digits, base = digits[1:], 8
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil || p.Bare {
		return 0, false
	}
	return uint32(n), true
}

// Parameters of nf_conntrack (nf_conntrack_core.c and nf_conntrack_standalone.c),
// of all kernels from 3.10 on.
var (
	numbers = []string{"hashsize", "expect_hashsize"}
	flags   = []string{"acct", "tstamp"}
	others  = []string{"nf_conntrack_helper", "enable_hooks"}
)

// refused says why a kernel of a release does not load nf_conntrack with a
// parameter, "" where it does. What it does not know it ignores, from 3.11 on.
func (p Param) refused(release string) string {
	_, number := p.Uint()
	switch {
	case slices.Contains(numbers, p.Name) && p.Bare:
		return p.Name + " stands there without a value"
	case slices.Contains(numbers, p.Name) && !number:
		return fmt.Sprintf("%s=%s is no number that the kernel takes", p.Name, p.Value)
	case slices.Contains(flags, p.Name) && !p.Bare && !isBool(p.Value):
		return fmt.Sprintf("%s=%s is neither 1 nor 0", p.Name, p.Value)
	case !slices.Contains(slices.Concat(numbers, flags, others), p.Name) && strictKernel(release):
		return fmt.Sprintf("kernel %s refuses parameters that it does not know, and %q is none", release, p.Name)
	}
	return ""
}

// isBool holds for what every kernel's kstrtobool takes.
func isBool(v string) bool { return v != "" && strings.ContainsRune("yY1nN0", rune(v[0])) }

// strictKernel holds for kernels before 3.11, which refuse a module with a
// parameter that it does not have.
func strictKernel(release string) bool {
	return host.KernelBefore(release, 3, 11)
}

// RefusedParam is a parameter with which the kernel does not load nf_conntrack.
type RefusedParam struct {
	Name string
	Why  string    // a sentence without a full stop
	Span host.Span // of it, and of the words that were meant to be its value
	// Meant is the number that was meant, where that is beyond doubt; else 0.
	Meant uint32
}

// RefusedParams are those of the words of an options line. Blanks around a "=",
// as in sysctl.conf, make words of one parameter.
func RefusedParams(release string, words []host.ModprobeArg) []RefusedParam {
	var out []RefusedParam
	for len(words) > 0 {
		p, at := ParamOf(words[0].Text), words[0].Span
		words = words[1:]
		why := p.refused(release)
		if why == "" {
			continue
		}
		take := func() (text string) {
			text, at.End = words[0].Text, words[0].Span.End
			words = words[1:]
			return text
		}
		value := p.Value
		if p.Bare && len(words) > 0 && strings.HasPrefix(words[0].Text, "=") {
			value = take()[1:]
		}
		if slices.Contains(numbers, p.Name) && value == "" && len(words) > 0 && beginsWithDigit(words[0].Text) {
			value = take()
		}
		var meant uint32
		if slices.Contains(numbers, p.Name) {
			meant, _ = Param{Value: strings.TrimSuffix(value, ";")}.Uint()
		}
		out = append(out, RefusedParam{Name: p.Name, Why: why, Span: at, Meant: meant})
	}
	return out
}

func beginsWithDigit(s string) bool { return s != "" && s[0] >= '0' && s[0] <= '9' }
