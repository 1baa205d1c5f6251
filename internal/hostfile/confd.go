package hostfile

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Drop-in folders are the same everywhere (sysctl.d(5), modprobe.d(5),
// modules-load.d(5)): *.conf of several folders, read in the order of their
// names, a name in an earlier folder masking the same name in a later one.
// modprobe reads *.alias too.

// Conf is a file that boot reads.
type Conf struct {
	Path string
	// As is the file of a drop-in folder that leads here, where that is another
	// path: /etc/sysctl.d/99-sysctl.conf for /etc/sysctl.conf.
	As string
}

// String is the path, with the link by which boot reads it.
func (c Conf) String() string {
	if c.As == "" {
		return c.Path
	}
	return c.Path + " as " + c.As
}

// Confs lists the files of the drop-in folders dirs, the folder that masks
// the others first, in the order in which they are read: those whose names end
// in .conf, or in one of suffixes. Masked files and
// links to /dev/null are left out. When a folder cannot be read, the list of
// the others comes with the error.
func Confs(root string, dirs []string, suffixes ...string) ([]Conf, error) {
	suffixes = append(suffixes, ".conf")
	var errs []error
	chosen := map[string]string{} // by base name
	for _, dir := range dirs {
		real, err := Real(root, dir)
		var entries []fs.DirEntry
		if err == nil {
			entries, err = os.ReadDir(onDisk(root, real))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("listing %s: %w", dir, bare(err)))
		}
		for _, e := range entries {
			name := e.Name()
			regular := e.Type().IsRegular() || e.Type()&fs.ModeSymlink != 0
			if !regular || strings.HasPrefix(name, ".") || !slices.Contains(suffixes, path.Ext(name)) {
				continue
			}
			if _, masked := chosen[name]; !masked {
				chosen[name] = path.Join(dir, name)
			}
		}
	}
	var list []Conf
	for _, p := range chosen {
		if real, err := Real(root, p); err == nil && (real == p || isFile(root, real)) {
			list = append(list, Conf{Path: p})
		}
	}
	slices.SortFunc(list, byBase)
	return list, errors.Join(errs...)
}

// Place returns list with name in it, whether name exists or not: in place of
// another path of the same file, by its base name where its folder is one of
// dirs, else last.
func Place(root string, list []Conf, dirs []string, name string) []Conf {
	if slices.ContainsFunc(list, func(c Conf) bool { return c.Path == name }) {
		return list
	}
	real, err := Real(root, name)
	if err == nil {
		for i, c := range list {
			if r, err := Real(root, c.Path); err == nil && r == real {
				list = slices.Clone(list)
				if list[i] = (Conf{name, cmp.Or(c.As, c.Path)}); list[i].As == name {
					list[i].As = ""
				}
				return list
			}
		}
	}
	if !slices.Contains(dirs, path.Dir(name)) {
		return append(slices.Clone(list), Conf{Path: name})
	}
	// A file that stands in the list for another place, such as
	// /etc/sysctl.conf for 99-sysctl.conf, breaks the order of base names.
	at := len(list)
	for i, c := range list {
		if slices.Contains(dirs, path.Dir(c.Path)) && byBase(c, Conf{Path: name}) > 0 {
			at = i
			break
		}
	}
	return slices.Insert(slices.Clone(list), at, Conf{Path: name})
}

// Exists reports whether name is a regular file, or a link to one.
func Exists(root, name string) bool {
	real, err := Real(root, name)
	return err == nil && isFile(root, real)
}

func isFile(root, real string) bool {
	info, err := os.Lstat(onDisk(root, real))
	return err == nil && info.Mode().IsRegular()
}

func byBase(a, b Conf) int {
	return cmp.Or(cmp.Compare(path.Base(a.Path), path.Base(b.Path)), cmp.Compare(a.Path, b.Path))
}
