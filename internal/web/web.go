// Package web serves HTTP so that no client keeps others from being answered.
//
// A [Door] bounds the connections of one listener. When they are used up, the connection
// that has waited longest for its client makes room for a new one. Such a client is silent,
// sends its header or body slowly, or keeps an unused connection. A connection whose
// request is being served is never dropped. If all connections are serving requests, the
// new one is closed at once, rather than left without an answer.
//
// [Connections] returns how many a process can afford: it leaves descriptors to the
// database, to NATS and to the admin pages.
//
// [Guard] protects pages on the loopback interface from attackers that reach it through a
// user's browser.
package web

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"
)

// NewServer returns a server for h on d. It has timeouts against slow clients. Serve it with
// d as its listener, and with no other.
func NewServer(d *Door, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           d.track(h),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// track returns a handler that records which connections are serving a request while h
// answers.
func (d *Door) track(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := connOf(r.Context())
		if c == nil {
			h.ServeHTTP(w, r)
			return
		}
		c.work()
		defer c.wait(false)
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &body{r.Body, c}
		}
		h.ServeHTTP(w, r)
	})
}

// A body is that of a request. While it is read, its connection waits for the client.
type body struct {
	io.ReadCloser

	conn *conn
}

func (b *body) Read(p []byte) (int, error) {
	b.conn.wait(true)
	defer b.conn.work()
	return b.ReadCloser.Read(p)
}

type connKey struct{}

// connOf returns the connection that [withConn] put into a request's context, or nil.
func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}
