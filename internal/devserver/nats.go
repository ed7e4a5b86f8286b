package devserver

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/crypto/bcrypt"
)

// NATSOptions configure the server of [StartNATS].
type NATSOptions struct {
	// Dir holds the streams. It is made if it is missing, and kept. No other
	// server may use it at the same time.
	Dir string
	// Port is the TCP port on 127.0.0.1; 0 picks a free one.
	Port int
	// Lazy lets the system decide when acknowledged messages are written to disk, as NATS
	// does by default. That is faster, but a crash of the machine loses the last minutes.
	// Otherwise every message is on disk before it is acknowledged.
	Lazy bool
	// Password is the password of the user pgjet; with "" everyone on 127.0.0.1 may
	// connect.
	Password string
	// MaxStore bounds the bytes of all streams; 0 takes most of the free disk.
	MaxStore int64
	// Connections is the largest number of clients, logged in or not; 0 is the default of
	// NATS, 65 536. Each takes a descriptor of this process.
	Connections int
	// Config is more configuration, in the format of NATS's own file, such as "max_payload:
	// 64KB" or a cluster. It overrides the fields above.
	Config string
	// Log receives the server's log: warnings and errors as such, the rest at debug level;
	// nil discards it.
	Log *slog.Logger
}

// A NATS is a running NATS server with JetStream. Its methods may be called by
// several goroutines.
type NATS struct {
	options NATSOptions
	server  *server.Server
}

// StartNATS starts a server inside this process and returns once it accepts connections and
// JetStream is up. Everyone on 127.0.0.1 may connect, unless o.Password or o.Config says
// otherwise.
func StartNATS(o NATSOptions) (*NATS, error) {
	if o.Dir == "" {
		return nil, errors.New("start NATS: no directory is named")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Port != 0 && busy(o.Port) {
		return nil, &PortsError{[]Port{{o.Port, "NATS"}}}
	}
	options, err := natsOptions(o)
	if err != nil {
		return nil, fmt.Errorf("start NATS: read the configuration: %w", err)
	}
	s, err := server.NewServer(options)
	if err != nil {
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	log := &natsLog{log: o.Log}
	s.SetLoggerV2(log, false, false, false)
	s.Start()
	n := &NATS{options: o, server: s}
	if addr, ok := s.Addr().(*net.TCPAddr); ok {
		n.options.Port = addr.Port
	}
	if err := n.check(log); err != nil {
		n.Stop()
		return nil, fmt.Errorf("start NATS in %s: %w", o.Dir, err)
	}
	return n, nil
}

func natsOptions(o NATSOptions) (*server.Options, error) {
	port := o.Port
	if port == 0 {
		var err error
		if port, err = freePort(); err != nil {
			return nil, err
		}
	}
	options := &server.Options{
		ServerName:         "pgjet-dev",
		Host:               "127.0.0.1",
		Port:               port,
		JetStream:          true,
		StoreDir:           o.Dir,
		SyncAlways:         !o.Lazy,
		JetStreamMaxMemory: 256 << 20,
		JetStreamMaxStore:  o.MaxStore,
		MaxConn:            o.Connections,
		NoSigs:             true,
	}
	if o.Password != "" {
		// The server warns of passwords in plain text. This one is random: it needs no slow hash.
		hash, err := bcrypt.GenerateFromPassword([]byte(o.Password), bcrypt.MinCost)
		if err != nil {
			return nil, err
		}
		options.Username, options.Password = superuser, string(hash)
	}
	if o.Config == "" {
		return options, nil
	}
	return options, options.ProcessConfigString(o.Config)
}

// check makes sure that the server is up, and that this server answers at its address: a
// failed start appears only in its log.
func (n *NATS) check(log *natsLog) error {
	if err := log.fatal(); err != nil {
		return err
	}
	if !n.server.ReadyForConnections(patience) || !n.server.JetStreamEnabled() {
		return errors.New("the server did not get ready")
	}
	id, err := greeting(n.options.Port)
	if err != nil {
		return err
	}
	if id != n.server.ID() {
		return fmt.Errorf("another NATS server answers at port %d", n.options.Port)
	}
	return nil
}

// greeting returns the id in the first line that a NATS server sends, before TLS and the
// log-in.
func greeting(port int) (string, error) {
	conn, err := net.DialTimeout("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	var info struct {
		ID string `json:"server_id"`
	}
	err = json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info)
	return info.ID, err
}

// URL returns the address of the server: nats://127.0.0.1:PORT, or nats://pgjet:PASSWORD@127.0.0.1:PORT.
func (n *NATS) URL() string {
	if n.options.Password == "" {
		return fmt.Sprintf("nats://127.0.0.1:%d", n.options.Port)
	}
	return fmt.Sprintf("nats://%s@127.0.0.1:%d", userinfo(n.options.Password), n.options.Port)
}

// Version returns the version of the server, such as "2.15.2".
func (n *NATS) Version() string { return server.VERSION }

// Options returns the options with which the server runs, with its actual port. A server
// started with them after this one stopped has the same address and the same streams.
func (n *NATS) Options() NATSOptions { return n.options }

// Healthy returns nil while the server is up, its streams are there, and, in a
// cluster, it has caught up with the others.
func (n *NATS) Healthy() error {
	status := n.server.Healthz(nil)
	if status.StatusCode != 200 {
		return fmt.Errorf("NATS at %s is %s: %s", n.URL(), status.Status, status.Error)
	}
	return nil
}

// Stop disconnects the clients, writes what is not yet on disk, and returns once
// the server has ended. Further calls do nothing.
func (n *NATS) Stop() {
	n.server.Shutdown()
	n.server.WaitForShutdown()
}

// A natsLog passes on the server's log, and keeps the error that stopped it from starting.
type natsLog struct {
	log *slog.Logger

	mu   sync.Mutex
	last error
}

func (l *natsLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *natsLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = fmt.Errorf(format, v...)
}

func (l *natsLog) Noticef(format string, v ...any) { l.log.Debug(text(format, v)) }
func (l *natsLog) Debugf(format string, v ...any)  { l.log.Debug(text(format, v)) }
func (l *natsLog) Tracef(format string, v ...any)  { l.log.Debug(text(format, v)) }
func (l *natsLog) Warnf(format string, v ...any)   { l.log.Warn(text(format, v)) }
func (l *natsLog) Errorf(format string, v ...any)  { l.log.Error(text(format, v)) }

func text(format string, v []any) string { return strings.TrimSpace(fmt.Sprintf(format, v...)) }
