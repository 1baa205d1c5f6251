package trace

import (
	"crypto/md5" // what dpkg compares with
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// The files of dpkg (dpkg(1), dpkg-query(1)).
const (
	dpkgInfo   = "/var/lib/dpkg/info"
	dpkgStatus = "/var/lib/dpkg/status"
)

var dpkgLogs = []string{"/var/log/dpkg.log.1", "/var/log/dpkg.log"}

// unpacked is a line of dpkg.log that says that a package was put on the host.
type unpacked struct {
	time          time.Time
	name, version string
	record        Record
}

// readDpkg finds the packages that own one of the files and were unpacked
// since. dpkg writes a package's list of files anew each time, so its time
// tells which packages come into question, whatever became of the log.
func (e *Evidence) readDpkg(q Query) {
	if len(q.Files) == 0 {
		return
	}
	entries, err := os.ReadDir(q.Root + dpkgInfo)
	if err != nil {
		return // no dpkg here
	}
	var log []unpacked
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".list")
		if !ok {
			continue
		}
		info, err := entry.Info()
		if err != nil || info.ModTime().Before(q.Since) {
			continue
		}
		list, err := readSmall(q.Root + dpkgInfo + "/" + entry.Name())
		if err != nil {
			continue
		}
		owned := owns(string(list), q.Files)
		if len(owned) == 0 {
			continue
		}
		if log == nil {
			log = e.readDpkgLog(q)
		}
		for _, file := range owned {
			e.Packages = append(e.Packages, dpkgPackage(q, name, file, info.ModTime(), log))
		}
	}
}

// owns returns those of the files that a list names, a path on each line.
// Where /lib is a link to /usr/lib, a package may say either.
func owns(list string, files []string) (owned []string) {
	for line := range strings.Lines(list) {
		line = strings.TrimSuffix(line, "\n")
		for _, f := range files {
			if (f == line || strings.TrimPrefix(f, "/usr") == line) && !slices.Contains(owned, f) {
				owned = append(owned, f)
			}
		}
	}
	return owned
}

// dpkgPackage says what there is to say of a package, by its name as in the
// names of dpkg's files: with ":ARCH" where several may be installed.
func dpkgPackage(q Query, name, file string, listed time.Time, log []unpacked) Package {
	plain, _, _ := strings.Cut(name, ":")
	p := Package{Manager: "dpkg", Name: plain, Path: file}
	p.Record = Record{Where: dpkgInfo + "/" + name + ".list", Text: "written when dpkg unpacked " + plain, Time: listed}
	for _, u := range log {
		if u.name == plain {
			p.Version, p.Record = u.version, u.record
		}
	}
	sum := md5Of(q.Root + file)
	if sum == "" {
		return p
	}
	if sums, err := readSmall(q.Root + dpkgInfo + "/" + name + ".md5sums"); err == nil {
		p.Delivered = hasSum(string(sums), file, sum)
	}
	if status, err := os.Open(q.Root + dpkgStatus); err == nil {
		defer status.Close()
		data, err := readUpTo(status, 64<<20)
		p.Delivered = p.Delivered || err == nil && hasConffile(string(data), plain, file, sum)
	}
	return p
}

// hasSum reports whether a .md5sums file has the sum of a file: "SUM  PATH"
// without the leading slash.
func hasSum(sums, file, sum string) bool {
	for line := range strings.Lines(sums) {
		s, p, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if ok && s == sum && (path.Join("/", p) == file || path.Join("/usr", p) == file) {
			return true
		}
	}
	return false
}

// hasConffile reports whether dpkg's status has this sum of a configuration
// file of the package, which its .md5sums leave out.
func hasConffile(status, name, file, sum string) bool {
	in, conffiles := false, false
	for line := range strings.Lines(status) {
		line = strings.TrimSuffix(line, "\n")
		if pkg, ok := strings.CutPrefix(line, "Package: "); ok {
			in = pkg == name
		}
		if !strings.HasPrefix(line, " ") {
			conffiles = line == "Conffiles:"
			continue
		}
		if f := strings.Fields(line); in && conffiles && len(f) >= 2 && f[0] == file && f[1] == sum {
			return true
		}
	}
	return false
}

func md5Of(path string) string {
	data, err := readSmall(path)
	if err != nil {
		return ""
	}
	sum := md5.Sum(data)
	return hex.EncodeToString(sum[:])
}

func (e *Evidence) readDpkgLog(q Query) []unpacked {
	log := []unpacked{}
	loc := local(q.Root)
	for _, file := range dpkgLogs {
		e.eachLine(q, file, func(n int, line string) {
			u, ok := parseDpkgLog(line, loc)
			if !ok || u.time.Before(q.Since.Add(-time.Second)) { // it has whole seconds
				return
			}
			u.record = Record{Where: place(file, n), Text: clip(line), Time: u.time}
			log = newest(append(log, u))
		})
	}
	return log
}

// parseDpkgLog reads "2026-11-28 17:29:41 upgrade procps:amd64 2:4.0.2-3
// 2:4.0.2-4", the last word being the new version.
func parseDpkgLog(line string, loc *time.Location) (unpacked, bool) {
	f := strings.Fields(line)
	if len(f) != 6 || f[2] != "upgrade" && f[2] != "install" {
		return unpacked{}, false
	}
	t, err := time.ParseInLocation(time.DateTime, fmt.Sprintf("%s %s", f[0], f[1]), loc)
	if err != nil {
		return unpacked{}, false
	}
	name, _, _ := strings.Cut(f[3], ":")
	return unpacked{time: t, name: name, version: f[5]}, true
}
