package main

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/internal/textdiff"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/schema"
)

func newFmt(e *env) *cobra.Command {
	var check, diff bool
	cmd := &cobra.Command{
		Use:   "fmt [--check] [--diff] [PATH...]",
		Short: "Lay out HCL files canonically",
		Long: `Rewrites HCL files in canonical layout and prints the names of those it changed.
A file that does not parse is left as it is. With - it formats standard input to
standard output.

Exit status: 0, or 1 on errors and, with --check, when a file is not formatted.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"."}
			}
			f := formatter{env: e, check: check, diff: diff}
			for _, path := range args {
				if err := f.path(path); err != nil {
					return err
				}
			}
			if f.failed || check && f.changed {
				return status(exitError)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "change nothing; exit 1 if a file is not formatted")
	cmd.Flags().BoolVar(&diff, "diff", false, "change nothing; print unified diffs")
	return cmd
}

type formatter struct {
	*env
	check, diff     bool
	changed, failed bool
}

func (f *formatter) path(path string) error {
	if path == "-" {
		content, err := schema.ReadLimited(f.stdin)
		if err != nil {
			return fmt.Errorf("reading standard input: %w", err)
		}
		return f.source(schema.Source{Name: "<stdin>", Content: content}, true)
	}
	sources, err := schema.ReadSources(path)
	if err != nil {
		return err
	}
	for _, src := range sources {
		if schema.IsJSON(src.Name) {
			continue // a program wrote it, in its own form
		}
		if err := f.source(src, false); err != nil {
			return err
		}
	}
	return nil
}

// source formats one file. One that does not parse is reported and does not
// keep the others from being formatted.
func (f *formatter) source(src schema.Source, stdin bool) error {
	out, diags := schema.Format(src)
	if f.diagnose(diags) != nil {
		f.failed = true
		return nil
	}
	same := bytes.Equal(out, src.Content)
	f.changed = f.changed || !same
	switch {
	case stdin && !f.check && !f.diff:
		_, err := f.stdout.Write(out)
		return err
	case same:
		return nil
	}
	if !stdin || f.check {
		if !f.diff {
			fmt.Fprintln(f.stdout, view.Clean(src.Name))
		}
	}
	if f.diff {
		name := view.Clean(src.Name)
		text := textdiff.Unified(name, name, string(src.Content), string(out), 3)
		_, err := io.WriteString(f.stdout, text)
		return err
	}
	if f.check || stdin {
		return nil
	}
	return rewrite(src.Name, src.Content, out)
}

// rewrite replaces a file's content and nothing else of it.
func rewrite(name string, was, content []byte) error {
	path, err := filepath.Abs(name)
	if err != nil {
		return fmt.Errorf("formatting %q: %w", name, err)
	}
	before, err := hostfile.Read("", path)
	if err != nil {
		return fmt.Errorf("formatting %q: %w", name, err)
	}
	if before.Content != string(was) {
		return fmt.Errorf("formatting %q: it changed meanwhile: run fmt again", name)
	}
	after := before
	after.Content = string(content)
	if err := hostfile.Write("", before, after); err != nil {
		return fmt.Errorf("formatting %q: %w", name, err)
	}
	return nil
}
