package flows

import (
	"fmt"
	"maps"
	"net"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
)

// TestReadStats has the kernel refuse an entry for being there already, and
// finds that, and only that, counted.
func TestReadStats(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.Use(host.NFT)
		ns.Run("iptables", "-A", "INPUT", "-m", "state", "--state", "ESTABLISHED")
		before, err := ReadStats("")
		if err != nil {
			t.Fatal(err)
		}
		if before.From != "netlink" || len(before.CPUs) == 0 || before.Entries == nil || before.Max == nil {
			t.Fatalf("read %+v", before)
		}
		c, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 3 { // the first makes an entry
			c.Write([]byte("x"))
		}
		// A packet that is no beginning of a connection is INVALID.
		raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_SCTP)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(raw)
		for range 5 {
			unix.Sendto(raw, []byte("too short"), 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		}
		after, err := ReadStats("")
		if err != nil {
			t.Fatal(err)
		}
		grown := after.Since(before)
		if grown["invalid"] == 0 && grown["error"] == 0 {
			t.Errorf("malformed packets are not counted: %v", grown)
		}
		for _, name := range []string{"drop", "early_drop", "insert_failed", "chaintoolong"} {
			if n, ok := grown[name]; !ok || n != 0 {
				t.Errorf("%s: %d, known %t; want 0", name, n, ok)
			}
		}
		if *after.Entries == 0 || *after.Max == 0 {
			t.Errorf("%d entries of %d, want some", *after.Entries, *after.Max)
		}
	})
}

// TestProcStats reads what kernels of three eras print.
func TestProcStats(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []CPUStats
	}{
		"6.18": {
			"entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n" +
				"00000001  00000002 00000003 00000000 00000005 00000000 00000000 00000006 00000007 00000008 0000000a 0000000b 0000000c  00000000 00000000 00000000 0000000d\n" +
				"00000001  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 ffffffff 00000000 00000000  00000000 00000000 00000000 00000000\n",
			[]CPUStats{
				{0, Counters{"clash_resolve": 2, "found": 3, "invalid": 5, "chaintoolong": 6, "insert": 7, "insert_failed": 8, "drop": 10, "early_drop": 11, "error": 12, "search_restart": 13}},
				{1, Counters{"clash_resolve": 0, "found": 0, "invalid": 0, "chaintoolong": 0, "insert": 0, "insert_failed": 0, "drop": 0xffffffff, "early_drop": 0, "error": 0, "search_restart": 0}},
			},
		},
		"2.6.32": {
			"entries  searched found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete\n" +
				"00000001  00000002 00000003 00000004 00000005 00000000 00000000 00000006 00000007 00000008 0000000a 0000000b 0000000c  00000000 00000000 00000000\n",
			[]CPUStats{{0, Counters{"found": 3, "invalid": 5, "insert": 7, "insert_failed": 8, "drop": 10, "early_drop": 11, "error": 12}}},
		},
		"nothing": {"", nil},
		"cut off": {"entries clashres found\n0000", nil},
	} {
		if got := parseProcStats(c.text); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v\nwant %+v", name, got, c.want)
		}
	}
	if readable, err := ReadStats(testhost.Tree(t, nil)); err != nil && readable != nil {
		t.Errorf("statistics with an error: %v", err)
	}
}

func TestStatsSince(t *testing.T) {
	before := &Stats{CPUs: []CPUStats{{0, Counters{"drop": 0xfffffffe, "insert": 9}}, {1, Counters{"drop": 1}}}}
	after := &Stats{CPUs: []CPUStats{{0, Counters{"drop": 3, "insert": 9, "chaintoolong": 4}}, {1, Counters{"drop": 1, "insert": 0, "chaintoolong": 0}}, {2, Counters{"drop": 7, "insert": 0, "chaintoolong": 0}}}}
	if got, want := after.Since(before), (Counters{"drop": 12}); !maps.Equal(got, want) {
		t.Errorf("grown by %v, want %v: what one side lacks is unknown", got, want)
	}
	if got, want := after.Total(), (Counters{"drop": 11, "insert": 9, "chaintoolong": 4}); !maps.Equal(got, want) {
		t.Errorf("total %v, want %v", got, want)
	}
	if got := after.Since(&Stats{}); len(got) != 0 {
		t.Errorf("grown by %v since nothing was read", got)
	}
	if got := (&Stats{}).Total(); len(got) != 0 {
		t.Errorf("total %v of nothing", got)
	}
}

func FuzzStats(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x08\x00\x0a\x00\x00\x00\x00\x05\x08\x00\x0f\x00\x00\x00\x00\x00"), "entries  clashres found drop\n00000001 00000002 00000003 0000000a\n")
	f.Add([]byte("\x00\x00\x00\x00\x08\x00\x01\x00\x00\x00\x07\xd0\x08\x00\x02\x00\x00\x00\x07\xd0"), "entries searched chainlength insert\nffffffff zz\n")
	f.Fuzz(func(t *testing.T, msg []byte, text string) {
		parseGlobalStats(msg)
		cpus := parseProcStats(text)
		if c, ok := parseCPUStats(msg); ok {
			cpus = append(cpus, c)
		}
		known := map[string]bool{}
		for _, name := range counterOf {
			known[name] = true
		}
		for _, c := range cpus {
			for name, n := range c.Counters {
				if !known[name] || n > 0xffffffff {
					t.Errorf("counter %s", fmt.Sprint(name, n))
				}
			}
		}
		s := &Stats{CPUs: cpus}
		for name, n := range s.Since(s) {
			if n != 0 {
				t.Errorf("%s grew by %d in no time", name, n)
			}
		}
	})
}
