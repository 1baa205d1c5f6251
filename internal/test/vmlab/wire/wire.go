// Package wire is what the lab and the agent in a machine say to each other:
// JSON objects, each after its length as four bytes, big end first. It owns
// no connection.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// Port is the name of the virtio-serial port that the agent listens on.
const Port = "ctplan.vmlab"

// Most is the largest frame, in bytes.
const Most = 64 << 20

// Request asks the agent to run a script.
type Request struct {
	ID      int
	Script  string // for bash -c
	Stdin   []byte
	Seconds float64 // after which the script and its children are killed
	Reboot  bool    // instead: write everything to the disk and reboot
}

// Reply is what came of a request. The agent's first reply has ID 0: it is
// there.
type Reply struct {
	ID             int
	Stdout, Stderr []byte
	Status         int    // exit status; 128 + n after signal n, as in a shell
	Error          string // why the script could not be run or was killed
}

// Write sends one frame.
func Write(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

// Read receives one frame.
func Read(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > Most {
		return fmt.Errorf("a frame of %d bytes is announced, and %d are allowed", n, Most)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}
