package trace

import (
	"context"
	"crypto/md5" // what old packages were built with
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/run"
)

// rpmDatabases are where rpm keeps what is installed.
var rpmDatabases = []string{"/usr/lib/sysimage/rpm", "/var/lib/rpm"}

// rpmFormat makes a line of each file of a package.
const rpmFormat = `[%{=NAME}\t%{=VERSION}-%{=RELEASE}\t%{=INSTALLTIME}\t%{FILENAMES}\t%{FILEDIGESTS}\n]`

var rpmLogs = []string{"/var/log/dnf.rpm.log", "/var/log/yum.log"}

// readRPM asks rpm which packages own the files. It runs as nobody: as root it
// would take locks in its database and make files there.
func (e *Evidence) readRPM(ctx context.Context, q Query) {
	files := slices.DeleteFunc(slices.Clone(q.Files), func(f string) bool { _, ok := e.Files[f]; return !ok })
	database := ""
	for _, dir := range rpmDatabases {
		for _, name := range []string{"rpmdb.sqlite", "Packages.db", "Packages"} {
			if s, ok := stamp(q.Root + dir + "/" + name); ok && !s.Modified.Before(q.Since) {
				database = dir
			}
			// What sqlite has not yet moved into the database.
			if s, ok := stamp(q.Root + dir + "/" + name + "-wal"); ok && !s.Modified.Before(q.Since) {
				database = dir
			}
		}
	}
	if len(files) == 0 || database == "" {
		return
	}
	args := []string{"--dbpath", database}
	if q.Root != "" {
		args = append(args, "--root", q.Root)
	}
	args = append(args, "--query", "--file", "--queryformat", rpmFormat, "--")
	out, err := q.Runner.Run(ctx, run.Cmd{Path: "rpm", Args: append(args, files...), Unprivileged: true})
	if errors.Is(err, exec.ErrNotFound) {
		return
	}
	var failed *run.Error // a file that no package owns: the others are printed
	if err != nil && !(errors.As(err, &failed) && len(out) > 0) {
		e.Notes = append(e.Notes, fmt.Sprintf("%v: which package owns what was not looked at", err))
		return
	}
	for line := range strings.Lines(string(out)) {
		p, digest, ok := parseRPM(strings.TrimSuffix(line, "\n"))
		if !ok || !slices.Contains(files, p.Path) || p.Time.Before(q.Since.Add(-time.Second)) || slices.ContainsFunc(e.Packages, func(o Package) bool { return o.Path == p.Path && o.Name == p.Name }) {
			continue
		}
		p.Delivered = digest != "" && digest == digestOf(q.Root+p.Path, len(digest))
		e.rpmLog(q, &p)
		e.Packages = append(e.Packages, p)
	}
}

// parseRPM reads a line of rpmFormat.
func parseRPM(line string) (p Package, digest string, ok bool) {
	f := strings.Split(line, "\t")
	if len(f) != 5 {
		return p, "", false
	}
	at, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return p, "", false
	}
	p = Package{Manager: "rpm", Name: f[0], Version: f[1], Path: f[3]}
	p.Record = Record{Where: "rpm -q " + p.Name, Text: clip(p.Name + "-" + p.Version + " was installed then"), Time: time.Unix(at, 0)}
	return p, f[4], true
}

// rpmLog looks for the line of a log that tells of the package's installation.
func (e *Evidence) rpmLog(q Query, p *Package) {
	for _, path := range rpmLogs {
		e.eachLine(q, path, func(n int, line string) {
			if strings.Contains(line, " "+p.Name+"-"+p.Version) || strings.Contains(line, ":"+p.Name+"-"+p.Version) {
				p.Where, p.Text = place(path, n), clip(line)
			}
		})
	}
}

// digestOf is a file's digest of as many hexadecimal digits: MD5 or SHA-256.
func digestOf(path string, digits int) string {
	data, err := readSmall(path)
	if err != nil {
		return ""
	}
	switch digits {
	case 2 * md5.Size:
		sum := md5.Sum(data)
		return hex.EncodeToString(sum[:])
	case 2 * sha256.Size:
		sum := sha256.Sum256(data)
		return hex.EncodeToString(sum[:])
	}
	return ""
}
