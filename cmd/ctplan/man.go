package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newMan writes the manual pages that packages ship. It is for make man, and
// hidden from whoever operates a host. cobra's own generator would print
// --full[=false] for a switch, and make the binary a twentieth larger.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man FOLDER",
		Short:  "Write the manual pages of all commands into a folder",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return hint(fmt.Errorf("man takes the folder to write to"), "usage: %s", cmd.UseLine())
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("making the folder for manual pages: %w", err)
			}
			pages := map[string]string{manName(cmd.Root()): manRoot(cmd.Root())}
			for _, c := range listed(cmd.Root()) {
				pages[manName(c)] = manCommand(c)
			}
			for name, page := range pages {
				if err := os.WriteFile(filepath.Join(args[0], name+".8"), []byte(page), 0o644); err != nil {
					return fmt.Errorf("writing a manual page: %w", err)
				}
			}
			return nil
		},
	}
}

// listed are the commands that --help lists.
func listed(root *cobra.Command) (commands []*cobra.Command) {
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			commands = append(commands, c)
		}
	}
	return commands
}

// manName is ctplan-apply.
func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manCommand is the page of one command, in the language of man(7).
func manCommand(c *cobra.Command) string {
	p := newManPage(c)
	p.options("OPTIONS", c.NonInheritedFlags())
	p.options("OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if c.Example != "" {
		p.section("EXAMPLES")
		p.verbatim(c.Example)
	}
	p.section("SEE ALSO")
	fmt.Fprintf(p, ".BR %s (8)\n", roff(manName(c.Root())))
	return p.String()
}

// manRoot is the page of ctplan itself: what there is, and what all commands share.
func manRoot(root *cobra.Command) string {
	p := newManPage(root)
	p.section("COMMANDS")
	for _, c := range listed(root) {
		fmt.Fprintf(p, ".TP\n.BR %s (8)\n%s\n", roff(manName(c)), roff(c.Short))
	}
	p.options("OPTIONS OF ALL COMMANDS", root.PersistentFlags())
	p.section("ENVIRONMENT")
	p.term("CTPLAN_VAR_", "NAME", "sets the variable NAME of the configuration")
	p.term("NO_COLOR", "", "no colours, unless --color asks for them")
	p.section("FILES")
	p.term("/var/lib/ctplan", "", "what was changed and how to take it back")
	p.term("/run/ctplan.lock", "", "held by the one ctplan that may change the host")
	p.section("SEE ALSO")
	for i, name := range []string{"conntrack", "iptables", "modprobe.d", "sysctl.d"} {
		if i > 0 {
			p.WriteString(",\n")
		}
		fmt.Fprintf(p, ".BR %s (%d)", roff(name), []int{8, 8, 5, 5}[i])
	}
	p.WriteString("\n")
	return p.String()
}

// manPage is a page as far as it is written.
type manPage struct{ strings.Builder }

// newManPage begins a page with what every command has.
func newManPage(c *cobra.Command) *manPage {
	p := &manPage{}
	name := manName(c)
	// No date: that of a build would make each build another one.
	fmt.Fprintf(p, ".TH %s 8 \"\" ctplan \"System Administration\"\n", roff(strings.ToUpper(name)))
	p.section("NAME")
	fmt.Fprintf(p, "%s \\- %s\n", roff(name), roff(c.Short))
	p.section("SYNOPSIS")
	fmt.Fprintf(p, ".B %s\n", roff(c.UseLine()))
	p.section("DESCRIPTION")
	paragraphs, status := strings.Split(strings.TrimSpace(c.Long), "\n\n"), ""
	if c.Long == "" {
		paragraphs = []string{c.Short + "."}
	}
	for i, text := range paragraphs {
		if rest, ok := strings.CutPrefix(text, "Exit status: "); ok {
			status = rest
			continue
		}
		if i > 0 {
			p.WriteString(".PP\n")
		}
		fmt.Fprintf(p, "%s\n", roff(text))
	}
	if status != "" {
		p.section("EXIT STATUS")
		fmt.Fprintf(p, "%s\n", roff(status))
	}
	return p
}

func (p *manPage) section(name string) { fmt.Fprintf(p, ".SH %s\n", name) }

// term is a name, what is put for a part of it, and what it means.
func (p *manPage) term(name, placeholder, meaning string) {
	fmt.Fprintf(p, ".TP\n.BI \"%s\" \"%s\"\n%s\n", roff(name), roff(placeholder), roff(meaning))
}

func (p *manPage) verbatim(text string) {
	fmt.Fprintf(p, ".EX\n%s\n.EE\n", roff(strings.TrimRight(text, "\n")))
}

// options is a section on flags; without any there is none.
func (p *manPage) options(title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	p.section(title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if value != "" {
			name += " "
		}
		if f.DefValue != "" && f.Value.Type() == "string" {
			usage += " (by default " + f.DefValue + ")"
		}
		p.term(name, value, usage)
	})
}

// roff writes text so that it comes out as it is, each sign as ASCII has it
// (groff_char(7)), and no line begins a request.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, `"`, `\(dq`, `'`, `\(aq`, "^", `\(ha`, "~", `\(ti`, "`", `\(ga`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
