package vmlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// cache is the folder that everything is kept in.
type cache struct{ dir string }

// openCache makes the folder.
func openCache() (cache, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return cache{}, fmt.Errorf("looking for a cache folder: %w; set XDG_CACHE_HOME", err)
	}
	c := cache{filepath.Join(base, "ctplan-vm")}
	return c, os.MkdirAll(c.dir, 0o755)
}

func (c cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// locked runs fn while no other test process prepares anything.
func (c cache) locked(ctx context.Context, fn func() error) error {
	l := flock.New(c.path("lock"))
	if _, err := l.TryLockContext(ctx, 200*time.Millisecond); err != nil {
		return fmt.Errorf("waiting for %s: %w", l.Path(), err)
	}
	defer l.Close()
	return fn()
}

// slot waits until one of two machines may run and returns how to let go.
func (c cache) slot(ctx context.Context) (release func(), err error) {
	for {
		for _, name := range []string{"slot.0", "slot.1"} {
			l := flock.New(c.path(name))
			ok, err := l.TryLock()
			if err != nil {
				return nil, fmt.Errorf("locking %s: %w", l.Path(), err)
			}
			if ok {
				return func() { l.Close() }, nil
			}
			l.Close()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for one of two other machines to end: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// make has fn make a file or folder that is then there as a whole or not at
// all. It does nothing where there is one already.
func (c cache) make(path string, fn func(tmp string) error) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := fn(tmp); err != nil {
		os.RemoveAll(tmp)
		return err
	}
	return os.Rename(tmp, path)
}
