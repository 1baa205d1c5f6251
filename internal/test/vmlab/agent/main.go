// Command agent runs in the lab's machines and does what it is told over the
// device that is its argument: scripts, one at a time, and the reboot.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/ctplan/ctplan/internal/test/vmlab/wire"
)

func main() {
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func serve(device string) error {
	port, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	if err := wire.Write(port, wire.Reply{}); err != nil {
		return err
	}
	for {
		var request wire.Request
		if err := wire.Read(port, &request); err != nil {
			return fmt.Errorf("waiting for a request: %w", err)
		}
		if request.Reboot {
			return reboot()
		}
		if err := wire.Write(port, do(request)); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
	}
}

func do(request wire.Request) wire.Reply {
	reply := wire.Reply{ID: request.ID}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("/bin/bash", "-c", request.Script)
	cmd.Dir = "/root"
	cmd.Stdin = bytes.NewReader(request.Stdin)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// What the script leaves behind must not hold up the answer.
	cmd.WaitDelay = 500 * time.Millisecond
	if err := cmd.Start(); err != nil {
		reply.Error = err.Error()
		return reply
	}
	timer := time.AfterFunc(time.Duration(request.Seconds*float64(time.Second)), func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
	err := cmd.Wait()
	if !timer.Stop() {
		reply.Error = fmt.Sprintf("killed after %g s", request.Seconds)
	} else if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		reply.Error = err.Error()
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	reply.Status = status.ExitStatus()
	if status.Signaled() {
		reply.Status = 128 + int(status.Signal())
	}
	reply.Stdout, reply.Stderr = stdout.Bytes(), stderr.Bytes()
	return reply
}

// reboot has systemd shut the machine down where it runs. Elsewhere it does
// what a shutdown does to the disk: writes all of it, and lets nobody write any
// more.
func reboot() error {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		if out, err := exec.Command("systemctl", "reboot").CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl reboot: %w: %s", err, out)
		}
		select {} // until it ends this process
	}
	syscall.Sync()
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("u"), 0); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond) // remounting is done by a worker of the kernel
	return syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
}
