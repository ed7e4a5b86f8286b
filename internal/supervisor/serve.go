package supervisor

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/pgjet/pgjet/internal/web"
)

// Grace is how long running requests may take once a server is stopping.
const Grace = 10 * time.Second

// Serve returns the part that answers on l, which may hold that many connections. It
// withstands slow clients and many clients, and lets running requests finish.
func Serve(name string, l net.Listener, connections int, h http.Handler, log *slog.Logger) Part {
	door := web.NewDoor(l, name, connections, log)
	server := web.NewServer(door, h, log)
	return Part{Name: name, Run: func(ctx context.Context) error {
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(door) }()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
		}
		shutdown(ctx, server, Grace)
		return nil
	}}
}

// shutdown accepts no more requests, and cuts off running ones that do not end in time.
func shutdown(ctx context.Context, server *http.Server, within time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		server.Close()
	}
}
