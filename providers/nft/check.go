package nft

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftconf"
)

// CheckConf asks nft whether it would load what nftables.service loads with these
// files in the place of theirs (nft -c -f), and changes nothing. It asks nothing
// where none of them is loaded, or where there is no nft. Files that do not load as
// they stand, an interface may be missing, prove nothing: then there is no error.
func CheckConf(ctx context.Context, r run.Runner, root string, edited []host.File) error {
	mains := Mains(root)
	paths, err := ConfPaths(root, mains)
	if err != nil {
		return err
	}
	own := nftconf.OwnPath(mains)
	if !slices.ContainsFunc(edited, func(f host.File) bool { return f.Path == own || slices.Contains(paths, f.Path) }) {
		return nil
	}
	var before, after []host.NFTFile
	for _, p := range paths {
		f, err := hostfile.Read(root, p)
		if err != nil {
			return err
		}
		before = append(before, nftconf.Parse(f))
	}
	after = slices.DeleteFunc(slices.Clone(before), func(f host.NFTFile) bool {
		return slices.ContainsFunc(edited, func(e host.File) bool { return e.Path == f.Path })
	})
	for _, f := range edited {
		if f.Exists {
			after = append(after, nftconf.Parse(f))
		}
	}
	err = loadable(ctx, r, mains, after)
	if err == nil || errors.Is(err, exec.ErrNotFound) || loadable(ctx, r, mains, before) != nil {
		return nil
	}
	return fmt.Errorf("nft would not load what nftables.service loads with these edits: %w", err)
}

// loadable is nft's own word for whether it would load the files now.
func loadable(ctx context.Context, r run.Runner, mains []string, files []host.NFTFile) error {
	for _, s := range nftconf.Scripts(mains, files) {
		if _, err := r.Run(ctx, run.Cmd{Path: "nft", Args: []string{"-c", "-f", "-"}, Stdin: s.Text}); err != nil {
			var failed *run.Error
			if errors.As(err, &failed) {
				return errors.New(complaint(&s, failed))
			}
			return err
		}
	}
	return nil
}

// complained is the beginning of a line of nft's about its standard input.
var complained = regexp.MustCompile(`/dev/stdin:(\d+):[\d-]+: (Error: .*)`)

// complaint is the first thing that nft says, with the file and line that it means.
func complaint(s *nftconf.Script, failed *run.Error) string {
	m := complained.FindStringSubmatch(failed.Stderr)
	if m == nil {
		return failed.Error()
	}
	line, _ := strconv.Atoi(m[1])
	return run.Printable(s.Place(line) + ": " + m[2])
}
