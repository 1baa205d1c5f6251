package run

import (
	"bytes"
	"os"
	"time"
)

const (
	// followEvery is how often a command's output is looked at while it runs.
	followEvery = time.Millisecond
	// followMost is how much is read at a time, in bytes. A longer line is
	// left for the end.
	followMost = 64 << 10
)

// follow gives what is written to f, in pieces of whole lines, until stop is
// called. stop returns how many bytes were given; nothing is given after it.
func follow(f *os.File, give func(lines []byte)) (stop func() int64) {
	quit, done := make(chan struct{}), make(chan int64)
	go func() {
		var given int64
		buf := make([]byte, followMost)
		tick := time.NewTicker(followEvery)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				done <- given
				return
			case <-tick.C:
			}
			for {
				n, _ := f.ReadAt(buf, given)
				end := bytes.LastIndexByte(buf[:n], '\n') + 1
				if end == 0 {
					break
				}
				give(buf[:end])
				given += int64(end)
			}
		}
	}()
	return func() int64 {
		close(quit)
		return <-done
	}
}
