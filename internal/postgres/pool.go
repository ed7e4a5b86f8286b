package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Open returns a pool whose direct connections are pinned, and whose pooled connections
// name no statements. Each connection finds out by itself which it is, so a pooler may come
// or go while the pool is in use. Open does not connect yet. It keeps config's hooks. more
// are settings for direct connections in addition to the usual ones, which they override.
func Open(ctx context.Context, config *pgxpool.Config, more ...Setting) (*pgxpool.Pool, error) {
	config = config.Copy()
	track(config.ConnConfig)
	watch(config.ConnConfig, func(ctx context.Context, conn *pgconn.PgConn) error {
		is, err := pin(ctx, conn, append(session(), more...))
		if config, ok := ctx.Value(connecting{}).(*pgx.ConnConfig); ok && err == nil && !is {
			config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		}
		return err
	})
	return pgxpool.NewWithConfig(ctx, config)
}

// OpenDirect is [Open] for a pool that refuses poolers with a [PoolerError]; what names the
// user of the pool.
func OpenDirect(ctx context.Context, config *pgxpool.Config, what string, more ...Setting) (*pgxpool.Pool, error) {
	config = config.Copy()
	track(config.ConnConfig)
	watch(config.ConnConfig, func(ctx context.Context, conn *pgconn.PgConn) error {
		return pinDirect(ctx, conn, what, append(session(), more...))
	})
	return pgxpool.NewWithConfig(ctx, config)
}

// ConnConfig returns the configuration of the next connection of a pool, even of a pool
// that asks for a new password each time.
func ConnConfig(ctx context.Context, db *pgxpool.Pool) (*pgx.ConnConfig, error) {
	config := db.Config()
	if config.BeforeConnect == nil {
		return config.ConnConfig, nil
	}
	err := config.BeforeConnect(ctx, config.ConnConfig)
	return config.ConnConfig, err
}

// watch has validate check each new connection, before config's own check.
func watch(config *pgx.ConnConfig, validate pgconn.ValidateConnectFunc) {
	then := config.ValidateConnect
	config.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if ctx.Value(watched{}) == nil { // else config is that of a pool, used for something else
			if err := validate(ctx, conn); err != nil {
				return err
			}
		}
		if then == nil {
			return nil
		}
		return then(context.WithValue(ctx, watched{}, true), conn)
	}
	if config.Tracer == nil {
		config.Tracer = connecting{}
	} else {
		config.Tracer = multitracer.New(config.Tracer, connecting{})
	}
}

// watched marks a connection that has been checked.
type watched struct{}

// A connecting passes the configuration of a new connection to those who check it. It is a
// tracer, since only a tracer gets that configuration from pgx: a pool's BeforeConnect gets
// a copy that is copied once more.
type connecting struct{}

func (c connecting) TraceConnectStart(ctx context.Context, data pgx.TraceConnectStartData) context.Context {
	return context.WithValue(ctx, c, data.ConnConfig)
}

func (connecting) TraceConnectEnd(context.Context, pgx.TraceConnectEndData) {}

func (connecting) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (connecting) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// closeTime bounds the end of a pool.
const closeTime = time.Second

// Close closes a pool, but waits only about a second: connections to a server that hangs
// remain until the end of the process.
func Close(db *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		db.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(closeTime):
	}
}
