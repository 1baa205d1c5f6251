package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/planner"
)

// build is what the Go toolchain recorded about this binary.
type build struct {
	FormatVersion int    `json:"format_version"`
	Version       string `json:"version"`            // a release, or "devel"
	Revision      string `json:"revision,omitempty"` // the commit
	Modified      bool   `json:"modified,omitempty"` // built with uncommitted changes
	Go            string `json:"go"`
	Platform      string `json:"platform"` // "linux/amd64"
}

func readBuild() build {
	b := build{FormatVersion: planner.FormatVersion, Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// String identifies a build well enough to tell whether two plan alike.
func (b build) String() string {
	s := b.Version
	if b.Version == "devel" && b.Revision != "" {
		s += "-" + b.Revision[:min(12, len(b.Revision))]
		if b.Modified {
			s += "+modified"
		}
	}
	return s
}

func newVersion(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of ctplan",
		Args:  atMost(0, "no argument"),
		RunE: func(*cobra.Command, []string) error {
			b := readBuild()
			if asJSON {
				return writeJSON(e.stdout, b)
			}
			_, err := fmt.Fprintf(e.stdout, "ctplan %s (%s, %s)\n", b, b.Go, b.Platform)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func newCompletion(e *env) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:       "completion {bash|zsh|fish}",
		Short:     "Print a completion script for a shell",
		Example:   "  ctplan completion bash > /etc/bash_completion.d/ctplan",
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return hint(fmt.Errorf("completion takes the name of one shell"), "usage: %s", cmd.UseLine())
			}
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(e.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(e.stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(e.stdout, true)
			}
			return fmt.Errorf("no completion for the shell %q: bash, zsh and fish have one", args[0])
		},
	}
}

// writeJSON writes one object, indented.
func writeJSON[T any](w io.Writer, v T) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
