package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A PoolerError says that code which needs a session of its own was given a pooler.
type PoolerError struct {
	What string // needs the session, such as "the relay's lead"
	Host string // and port, of the pooler
}

// Error also says what to do about it.
func (e *PoolerError) Error() string {
	return fmt.Sprintf("%s leads to a connection pooler, not to PostgreSQL itself, and %s needs a session of its own, "+
		"which a pooler gives to others; keep the pooler for the rest, and give the address of PostgreSQL itself "+
		"with --direct-database-url or PGJET_DIRECT_DATABASE_URL", e.Host, e.What)
}

// Class is that of statements that a pooler broke.
func (e *PoolerError) Class() sqlstate.Class { return sqlstate.Pooler }

// IsPooler reports whether err is due to a pooler.
func IsPooler(err error) bool {
	_, is := errors.AsType[*PoolerError](err)
	return is
}

// A NamesError says that a pool, which was not opened by this package, names its statements
// and leads to a pooler. The pooler may give the names to other clients.
type NamesError struct {
	Host string // and port, of the pooler
}

// Error also says what to do about it.
func (e *NamesError) Error() string {
	return fmt.Sprintf("%s leads to a connection pooler, and the pool names its statements, which a pooler gives to others; "+
		"add default_query_exec_mode=cache_describe to the URL of the pool", e.Host)
}

// Class is that of statements that a pooler broke.
func (e *NamesError) Class() sqlstate.Class { return sqlstate.Pooler }

// CheckNames returns a [NamesError] if a new statement of db would get a name on a shared
// session. Its own statement has no name.
func CheckNames(ctx context.Context, db *pgxpool.Pool) error {
	if db.Config().ConnConfig.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement {
		return nil
	}
	return db.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		conn := c.Conn()
		if Pinned(conn) || conn.Config().DefaultQueryExecMode != pgx.QueryExecModeCacheStatement { // of a pool that was opened here
			return nil
		}
		results, err := conn.PgConn().Exec(ctx, fmt.Sprintf(`select where pg_backend_pid() = %d`, conn.PgConn().PID())).ReadAll()
		if err == nil && len(results[0].Rows) == 0 {
			err = &NamesError{conn.PgConn().Conn().RemoteAddr().String()}
		}
		return err
	})
}

// A TransactionsError says that a pool leads to a pooler that gives each statement another
// session, so it has no transactions.
type TransactionsError struct {
	Host string // and port, of the pooler
}

// Error also says what to do about it.
func (e *TransactionsError) Error() string {
	return fmt.Sprintf("%s leads to a connection pooler that has no transactions (pool_mode=statement); "+
		"give it pool_mode=transaction, or give the address of PostgreSQL itself", e.Host)
}

// Class is that of statements that a pooler broke.
func (e *TransactionsError) Class() sqlstate.Class { return sqlstate.Pooler }

// CheckTransactions returns a [TransactionsError] if db leads to a pooler that has no
// transactions. Its errors begin with a reason, like those of [CheckWritable]. On a pinned
// connection it sends nothing.
func CheckTransactions(ctx context.Context, db *pgxpool.Pool) error {
	return sqlstate.Explain(db.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		if Pinned(c.Conn()) {
			return nil
		}
		conn := c.Conn().PgConn()
		host := conn.Conn().RemoteAddr().String()
		// Such a pooler refuses a transaction that stays open after an answer, and closes
		// the connection.
		_, err := conn.Exec(ctx, `begin`).ReadAll()
		if sqlstate.Of(err) == sqlstate.Pooler {
			return &TransactionsError{host}
		}
		if err == nil {
			_, err = conn.Exec(ctx, `rollback`).ReadAll()
		}
		return err
	}), "")
}

// A Session describes a direct connection for one purpose.
type Session struct {
	What        string    // needs it; see [PoolerError]
	Application string    // the application name
	Settings    []Setting // they override those of every direct connection
	Optional    []Setting // that the server's system may lack
}

// Connect opens a direct connection. If a pooler answers, it returns a [PoolerError] before
// it has set anything.
func Connect(ctx context.Context, config *pgx.ConnConfig, s Session) (*pgx.Conn, error) {
	config = config.Copy()
	track(config)
	config.RuntimeParams["application_name"] = s.Application
	config.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	if config.StatementCacheCapacity <= 0 {
		config.StatementCacheCapacity = 512
	}
	watch(config, func(ctx context.Context, conn *pgconn.PgConn) error {
		return pinDirect(ctx, conn, s.What, append(session(), s.Settings...))
	})
	conn, err := pgx.ConnectConfig(ctx, config)
	if pooler, is := errors.AsType[*PoolerError](err); is {
		return nil, pooler // without what pgx puts around it
	}
	if err != nil {
		return nil, err
	}
	for _, setting := range s.Optional {
		_, err := conn.Exec(ctx, set([]Setting{setting}, false, `true`))
		if _, refused := errors.AsType[*pgconn.PgError](err); err != nil && !refused {
			_ = conn.Close(ctx)
			return nil, err
		}
	}
	return conn, nil
}

// pinDirect is pin, but refuses a pooled connection.
func pinDirect(ctx context.Context, conn *pgconn.PgConn, what string, settings []Setting) error {
	is, err := pin(ctx, conn, settings)
	if err == nil && !is {
		err = &PoolerError{what, conn.Conn().RemoteAddr().String()}
	}
	return err
}
