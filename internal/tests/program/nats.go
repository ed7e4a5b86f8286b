package program

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devserver"
)

// natsVariable holds options. With it this program is a NATS server.
const natsVariable = "PGJET_TEST_NATS"

// serveNATS runs that server. It ends with the process that started it.
func serveNATS(options string) {
	var o devserver.NATSOptions
	err := json.Unmarshal([]byte(options), &o)
	if err == nil {
		var n *devserver.NATS
		if n, err = devserver.StartNATS(o); err == nil {
			fmt.Println(n.Options().Port)
			_, err = io.Copy(io.Discard, os.Stdin)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A NATSProcess is a NATS server that a test may kill and freeze.
type NATSProcess struct {
	T       testing.TB
	Options devserver.NATSOptions // with its port, once it has started
	Cmd     *exec.Cmd
	Stderr  Output
	done    chan struct{} // closed when it has ended
}

// StartNATSProcess starts a server, and ends it at cleanup. The package of the test has to call [Main].
func StartNATSProcess(t testing.TB, o devserver.NATSOptions) *NATSProcess {
	t.Helper()
	n := &NATSProcess{T: t, Options: o}
	n.Start()
	t.Cleanup(n.Kill)
	return n
}

// URL returns the address of the server.
func (n *NATSProcess) URL() string { return "nats://" + Local(n.Options.Port) }

// Start starts the server, again after Kill, on its port and with its data.
func (n *NATSProcess) Start() {
	n.T.Helper()
	for deadline := time.Now().Add(Healing); ; time.Sleep(100 * time.Millisecond) {
		err := n.try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.T.Fatalf("start NATS: %v: %s", err, n.Stderr.String())
		}
	}
}

func (n *NATSProcess) try() error {
	options, err := json.Marshal(n.Options)
	if err != nil {
		return err
	}
	n.Cmd = exec.Command(os.Args[0])
	n.Cmd.Env = append(os.Environ(), natsVariable+"="+string(options))
	n.Cmd.Stderr = &n.Stderr
	n.Cmd.SysProcAttr = Ours()
	if _, err := n.Cmd.StdinPipe(); err != nil { // closed by the end of this process
		return err
	}
	stdout, err := n.Cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.Run(); err != nil {
		return err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil {
		n.Options.Port, err = strconv.Atoi(strings.TrimSpace(line))
	}
	return err
}

// Run starts Cmd and the goroutine that waits for its end. The process ends with the thread that
// started it.
func (n *NATSProcess) Run() error {
	n.done = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := n.Cmd.Start()
		started <- err
		if err == nil {
			_ = n.Cmd.Wait() // killed
		}
		close(n.done)
	}()
	return <-started
}

// Kill kills the server, frozen or not, and waits for its end.
func (n *NATSProcess) Kill() {
	_ = n.Cmd.Process.Kill() // it may have ended
	<-n.done
}
