package web

import (
	"container/list"
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const (
	// AdminConnections is how many connections an admin listener holds, for probes, scrapes
	// and a few people.
	AdminConnections = 64

	// mostConnections is how many connections one listener holds at most. Each takes some 16 KiB.
	mostConnections = 4096
	// bodyWait is how long a connection may wait for a body before it has to make room for
	// another: a body that has been sent is read sooner.
	bodyWait = 100 * time.Millisecond
	// warnEvery is the least time between two warnings that a listener is nearly full.
	warnEvery = 10 * time.Minute
)

// Connections returns how many connections each of that many listeners may hold, so that
// together they leave a quarter of the process's descriptors, and at least 128 if possible,
// to everything else.
func Connections(listeners int) int {
	descriptors := descriptorLimit()
	reserved := min(descriptors/2, max(descriptors/4, 128))
	return max(1, min(mostConnections, (descriptors-reserved)/max(1, listeners)))
}

// A Door is a listener with a bound on its connections. See the package comment.
type Door struct {
	net.Listener

	name    string
	most    int
	log     *slog.Logger
	refused metric.Int64Counter

	mu      sync.Mutex
	conns   int
	waiting *list.List // of *conn, the longest wait first
	warned  time.Time
}

// NewDoor returns a listener that accepts from l and holds at most most connections. The
// name is that of the listener in logs and metrics.
func NewDoor(l net.Listener, name string, most int, log *slog.Logger) *Door {
	d := &Door{Listener: l, name: name, most: max(1, most), log: log, waiting: list.New()}
	if err := d.measure(otel.Meter("github.com/pgjet/pgjet/internal/web")); err != nil {
		panic(err) // a name below is wrong
	}
	return d
}

func (d *Door) measure(meter metric.Meter) (err error) {
	listener := metric.WithAttributes(attribute.String("listener", d.name))
	d.refused, err = meter.Int64Counter("pgjet.http.connections.refused", metric.WithDescription(
		"Connections closed to keep below the limit, by listener."))
	if err != nil {
		return err
	}
	d.refused.Add(context.Background(), 0, listener) // exported from the beginning
	open, err := meter.Int64ObservableGauge("pgjet.http.connections", metric.WithDescription("Open connections, by listener."))
	if err != nil {
		return err
	}
	most, err := meter.Int64ObservableGauge("pgjet.http.connections.limit", metric.WithDescription("How many connections a listener holds at most."))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		o.ObserveInt64(open, int64(d.conns), listener)
		o.ObserveInt64(most, int64(d.most), listener)
		return nil
	}, open, most)
	return err
}

// Accept waits for the next connection for which there is room.
func (d *Door) Accept() (net.Conn, error) {
	for {
		nc, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: nc, door: d}
		leaving, ok := d.admit(c)
		if !ok {
			leaving = c
		}
		if leaving != nil {
			_ = leaving.Conn.Close() // it is of no use any more
			d.refused.Add(context.Background(), 1, metric.WithAttributes(attribute.String("listener", d.name)))
		}
		d.warn()
		if ok {
			return c, nil
		}
	}
}

// admit counts c, and reports whether there is room for it. If another connection has to
// leave for it, admit returns that one.
func (d *Door) admit(c *conn) (leaving *conn, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conns >= d.most {
		if leaving = d.longest(); leaving == nil {
			return nil, false
		}
		d.forget(leaving)
	}
	d.conns++
	c.queue()
	return leaving, true
}

// longest returns the connection that has waited longest and may leave, or nil. The caller
// holds mu.
func (d *Door) longest() *conn {
	for e := d.waiting.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*conn); !c.reading || time.Since(c.since) >= bodyWait {
			return c
		}
	}
	return nil
}

// forget releases c's place. The caller holds mu.
func (d *Door) forget(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	d.conns--
	c.unqueue()
}

// warn logs now and then that the limit is near.
func (d *Door) warn() {
	d.mu.Lock()
	conns, due := d.conns, d.conns*10 >= d.most*9 && time.Since(d.warned) >= warnEvery
	if due {
		d.warned = time.Now()
	}
	d.mu.Unlock()
	if due {
		d.log.Warn("nearly as many connections as this process can hold: clients that wait longest are cut off; raise the limit of open files (ulimit -n), or add processes",
			"listener", d.name, "connections", conns, "limit", d.most)
	}
}

// A conn is a connection of a door. It waits for its client, or a request on it is being
// served.
type conn struct {
	net.Conn

	door *Door

	// Guarded by door.mu.
	place   *list.Element // in door.waiting; nil while at work
	since   time.Time     // when it began to wait
	reading bool          // it waits for the body of a request
	gone    bool          // it has no place any more
}

// wait records that the connection waits for its client from now on, for a body or for a request.
func (c *conn) wait(body bool) {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	c.reading = body
	c.queue()
}

// work records that the client has sent what it had to.
func (c *conn) work() {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	c.unqueue()
}

// queue makes c the last of those that wait. The caller holds door.mu.
func (c *conn) queue() {
	if c.place == nil && !c.gone {
		c.since = time.Now()
		c.place = c.door.waiting.PushBack(c)
	}
}

// unqueue is the opposite of queue.
func (c *conn) unqueue() {
	if c.place != nil {
		c.door.waiting.Remove(c.place)
		c.place = nil
	}
}

// Close closes the connection and releases its place.
func (c *conn) Close() error {
	err := c.Conn.Close() // first: the place stands for a descriptor
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	c.door.forget(c)
	return err
}

// withConn makes the connection known to the handler of its requests.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*conn); ok {
		return context.WithValue(ctx, connKey{}, c)
	}
	return ctx
}
