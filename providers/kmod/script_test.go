package kmod_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/kmod"
)

func TestParseScript(t *testing.T) {
	for line, want := range map[string]string{
		"modprobe nf_conntrack":                                         "nf_conntrack",
		"/sbin/modprobe -q nf-conntrack 2>/dev/null || true":            "nf_conntrack",
		"exec /sbin/modprobe ip_conntrack >/dev/null 2>&1":              "ip_conntrack",
		"[ -x /sbin/modprobe ] && modprobe nf_nat; modprobe loop":       "nf_nat loop",
		"modprobe -a nf_conntrack nf_nat_ftp":                           "nf_conntrack nf_nat_ftp",
		"modprobe nf_conntrack hashsize=3":                              "nf_conntrack",
		"modprobe -i nf_conntrack":                                      "nf_conntrack!",
		"modprobe --ignore-install nf_conntrack":                        "nf_conntrack!",
		"insmod /lib/modules/x/kernel/net/netfilter/nf_conntrack.ko.xz": "nf_conntrack!",
		"x=$(modprobe nf_conntrack)":                                    "nf_conntrack",
		"insmod $(find /lib/modules -name nf_conntrack.ko)":             "find! modules! nf_conntrack!",
		"# modprobe nf_conntrack":                                       "",
		"echo x # modprobe nf_conntrack":                                "",
		"modprobe -r nf_conntrack":                                      "",
		"rmmod nf_conntrack":                                            "",
		"for m in $IPTABLES_MODULES; do modprobe $m > /dev/null; done":  "m",
		"": "",
	} {
		s := kmod.ParseScript(host.File{Content: "#!/bin/sh\n" + line + "\n"})
		var got []string
		for _, l := range s.Loads {
			past := ""
			if l.Past {
				past = "!"
			}
			got = append(got, l.Module+past)
			if l.Line != 2 || l.Text != strings.TrimSpace(line) {
				t.Errorf("%q: %+v", line, l)
			}
		}
		got = slices.DeleteFunc(got, func(s string) bool { return s == "]" || s == "/dev/null" || s == "null" })
		if g := strings.Join(got, " "); g != want {
			t.Errorf("%q loads %q, want %q", line, g, want)
		}
	}
}

func FuzzParseScript(f *testing.F) {
	f.Add("modprobe -q a b; insmod x.ko\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines := strings.Split(text, "\n")
		for _, l := range kmod.ParseScript(host.File{Content: text}).Loads {
			if l.Line < 1 || l.Line > len(lines) || strings.TrimSpace(lines[l.Line-1]) != l.Text {
				t.Errorf("line %d is not %q", l.Line, l.Text)
			}
		}
	})
}
