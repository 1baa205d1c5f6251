package vmlab

import (
	"fmt"
	"io"
	"os"
)

// cpioWriter writes the archive format that the kernel unpacks as its first
// root, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpioWriter struct {
	w   io.Writer
	ino int
	err error
}

const (
	cpioDir  = 0o040755
	cpioFile = 0o100755
)

func (c *cpioWriter) dir(name string) { c.entry(name, cpioDir, nil) }

func (c *cpioWriter) file(name string, content []byte) { c.entry(name, cpioFile, content) }

func (c *cpioWriter) copy(name, from string) {
	content, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.file(name, content)
}

// close ends the archive and returns the first error.
func (c *cpioWriter) close() error {
	c.entry("TRAILER!!!", 0, nil)
	return c.err
}

func (c *cpioWriter) entry(name string, mode int, content []byte) {
	c.ino++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0) + name + "\x00"
	c.write([]byte(header))
	c.write(make([]byte, -len(header)&3))
	c.write(content)
	c.write(make([]byte, -len(content)&3))
}

func (c *cpioWriter) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}
