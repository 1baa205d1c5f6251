package netlink

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// message is one message of a netlink dump.
func message(typ, flags uint16, body ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = append(b, make([]byte, 8)...)
	return append(append(b, body...), make([]byte, Align(len(body))-len(body))...)
}

func TestMessages(t *testing.T) {
	enoent := -int32(unix.ENOENT)
	refused := binary.NativeEndian.AppendUint32(nil, uint32(enoent))
	for name, tt := range map[string]struct {
		in            []byte
		seen          int
		done, changed bool
		err           error
	}{
		"two, more to come":     {slices.Concat(message(16, 0, 1), message(16, 0, 2)), 2, false, false, nil},
		"the end":               {slices.Concat(message(16, 0, 1), message(unix.NLMSG_DONE, 0, 0, 0, 0, 0)), 1, true, false, nil},
		"changed meanwhile":     {slices.Concat(message(16, unix.NLM_F_DUMP_INTR, 1), message(16, 0, 1)), 2, false, true, nil},
		"changed, said at last": {message(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 0, 0, 0, 0), 0, true, true, nil},
		"refused":               {message(unix.NLMSG_ERROR, 0, refused...), 0, true, false, unix.ENOENT},
		"broken off":            {slices.Concat(message(16, 0, 1), message(unix.NLMSG_DONE, 0, refused...)), 1, true, false, unix.ENOENT},
		"an acknowledgement":    {message(unix.NLMSG_ERROR, 0, 0, 0, 0, 0), 0, true, false, nil},
	} {
		seen := 0
		done, changed, err := messages(tt.in, func([]byte) bool { seen++; return true })
		if seen != tt.seen || done != tt.done || changed != tt.changed || !errors.Is(err, tt.err) {
			t.Errorf("%s: %d messages, done %v, changed %v, %v", name, seen, done, changed, err)
		}
	}
	if _, _, err := messages(message(16, 0, 1, 2, 3, 4)[:18], func([]byte) bool { return true }); err == nil {
		t.Error("a message that is cut off is no error")
	}
}

// TestDump asks the kernel for what every namespace has: its links.
func TestDump(t *testing.T) {
	links := 0
	if err := Dump(unix.NETLINK_ROUTE, unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(msg []byte) bool {
		Attributes(msg[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) {
			if typ == unix.IFLA_IFNAME {
				links++
			}
		})
		return true
	}); err != nil || links == 0 {
		t.Errorf("%d links, %v", links, err)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(message(16, 0, AppendAttribute(nil, 3, []byte("x"))...))
	f.Add(message(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		messages(b, func(msg []byte) bool {
			total += len(msg)
			into := make([][]byte, 4)
			ByType(msg, into)
			Attributes(msg, func(_ uint16, v []byte) {
				if len(v) > len(msg)-unix.NLA_HDRLEN {
					t.Errorf("an attribute of %d bytes in %d", len(v), len(msg))
				}
			})
			return true
		})
		if total > len(b) {
			t.Errorf("%d bytes of messages in %d", total, len(b))
		}
	})
}
