package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
)

// childEnv names what this test binary does instead of testing, when a test
// starts it once more in a host's namespaces to send or to serve.
const childEnv = "CTPLAN_E2E_CHILD"

func runChild(name string, args []string) int {
	children := map[string]func([]string) error{"flood": flood, "drip": drip, "serve": serve, "call": call, "faults": faults, "killed": killed, "mix": mix}
	if err := children[name](args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// child is this binary in the host's namespaces.
func (h *host) child(name string, args ...string) *exec.Cmd {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := h.Command(self, args...)
	cmd.Env = append(cmd.Env, childEnv+"="+name)
	return cmd
}

// start runs a child until the test ends, and waits for its first line.
func (h *host) start(name string, args ...string) {
	h.t.Helper()
	nstest.Start(h.t, h.child(name, args...))
}

const (
	floodSources = 100
	floodTargets = 1000
	floodFlows   = floodSources * floodTargets
)

// flooded is what became of a flood.
type flooded struct {
	Sent, Failed, Received int
	Error                  string // the first
}

// flood sends one datagram in each of floodFlows UDP flows, from floodSources
// ports to floodTargets loopback addresses, where one socket receives them all.
func flood([]string) error {
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		return err
	}
	raw, err := sink.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<28)
	}); cerr != nil || err != nil {
		return fmt.Errorf("receive buffer: %w", err)
	}
	port := sink.LocalAddr().(*net.UDPAddr).Port
	received := make(chan int)
	go func() {
		n, buf := 0, make([]byte, 16)
		for n < floodFlows {
			sink.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, _, err := sink.ReadFromUDPAddrPort(buf); err != nil {
				break
			}
			n++
		}
		received <- n
	}()
	var r flooded
	for range floodSources {
		source, err := net.ListenUDP("udp4", &net.UDPAddr{})
		if err != nil {
			return err
		}
		for i := range floodTargets {
			to := net.UDPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i)), Port: port}
			if _, err := source.WriteToUDP([]byte("flow"), &to); err != nil {
				r.Failed++
				if r.Error == "" {
					r.Error = err.Error()
				}
				continue
			}
			r.Sent++
		}
		source.Close()
	}
	r.Received = <-received
	return json.NewEncoder(os.Stdout).Encode(r)
}

// dripRate is how many flows a second drip opens.
const dripRate = 250

// drip opens one UDP flow after the other over loopback, at an even rate, until
// standard input closes. What is refused is left.
func drip([]string) error {
	source, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		return err
	}
	defer source.Close()
	fmt.Println("ready")
	over := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	begun := time.Now()
	for n := 0; ; n++ {
		select {
		case <-over:
			return nil
		case <-time.After(time.Until(begun.Add(time.Duration(n) * time.Second / dripRate))):
			source.WriteToUDP([]byte("flow"), &net.UDPAddr{IP: net.IPv4(127, 2, byte(n>>8), byte(n)), Port: 9})
		}
	}
}

// serve echoes on the TCP addresses until standard input closes.
func serve(addresses []string) error {
	for _, address := range addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					io.Copy(conn, conn)
				}()
			}
		}()
	}
	return waitForEnd()
}

// waitForEnd says that a child is ready, and returns when its standard input closes.
func waitForEnd() error {
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return nil
}

// called is what became of calls to a server.
type called struct {
	Connections, Echoes int
	Failures            []string
}

// patience is how long a client waits for an answer that a veth pair brings in
// far less than a millisecond. A lost SYN comes again after a second, which is
// too late; a packet that is lost later comes again after 200 ms, and lost looks
// for that.
const patience = 900 * time.Millisecond

// lost is an error when packets of the connection had to be sent again.
func lost(conn net.Conn) error {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil {
		return err
	}
	if infoErr != nil {
		return infoErr
	}
	if info.Total_retrans > 0 {
		return fmt.Errorf("%d packets were lost and sent again", info.Total_retrans)
	}
	return nil
}

// call opens a TCP connection to each address every 10 ms, and keeps one open
// to each that it uses without a pause, so that a gap of a fraction of a
// millisecond costs a packet, until standard input closes.
func call(addresses []string) error {
	var mu sync.Mutex
	var r called
	fail := func(what, address string, err error) {
		mu.Lock()
		defer mu.Unlock()
		r.Failures = append(r.Failures, fmt.Sprintf("%s %s: %v", what, address, err))
	}
	echo := func(conn net.Conn) error {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte("ping")); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
			return err
		}
		return lost(conn)
	}
	stop := make(chan struct{})
	var work sync.WaitGroup
	every := func(interval time.Duration, do func()) {
		work.Go(func() {
			for tick := time.NewTicker(interval); ; {
				select {
				case <-stop:
					return
				case <-tick.C:
					do()
				}
			}
		})
	}
	for _, address := range addresses {
		long, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		broken := false
		every(time.Microsecond, func() {
			if broken {
				return
			}
			if err := echo(long); err != nil {
				broken = true
				fail("long-lived connection to", address, err)
				return
			}
			mu.Lock()
			r.Echoes++
			mu.Unlock()
		})
		every(10*time.Millisecond, func() {
			work.Go(func() {
				conn, err := net.DialTimeout("tcp", address, patience)
				if err != nil {
					fail("connecting to", address, err)
					return
				}
				defer conn.Close()
				if err := echo(conn); err != nil {
					fail("talking to", address, err)
					return
				}
				mu.Lock()
				r.Connections++
				mu.Unlock()
			})
		})
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	close(stop)
	work.Wait()
	return json.NewEncoder(os.Stdout).Encode(r)
}
