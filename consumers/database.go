package consumers

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/membership"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/rivals"
)

// A database is the part of a session's database that concerns its consumer and the other sessions.
// [connection] implements it, and so does the model of the simulation. Only the session's goroutine
// calls the methods of the first part.
type database interface {
	Open(ctx context.Context) (inbox.Version, error) // connects, and announces the session
	Close()
	Closed() bool
	membership.Locks

	// See the functions of package inbox with these names.
	Locate(ctx context.Context) (here rivals.Presence, elsewhere bool, err error)
	ForgetPlace(ctx context.Context) error
	Identity(ctx context.Context) (inbox.Identity, error) // ReadIdentity
	Abandon(ctx context.Context, sessions []string) error
	ReadMark(ctx context.Context) (inbox.Mark, error)
	Register(ctx context.Context, r inbox.Registration) (inbox.Registered, error)
	ReadPause(ctx context.Context) (*inbox.Paused, error)
	Heartbeat(ctx context.Context, b inbox.Beat) error
	RemoveProcess(ctx context.Context, process string) error
	Current(ctx context.Context, v inbox.Version, epochs []int64) (current, due bool, err error)
	Depose(ctx context.Context, s inbox.Slice) error
	Save(ctx context.Context, t *inbox.Tenure, floor, high uint64, stored time.Time) error
	TableLock(ctx context.Context) (*lead.TableLock, error)
	Holder(ctx context.Context) (*lead.Holder, error)

	NameLock(ctx context.Context, err error) error

	Inbox(t *inbox.Tenure) sliceInbox
	Divide(ctx context.Context, slices int) error
	Rebuild(ctx context.Context, clear func(ctx context.Context, tx pgx.Tx) error) error
	Redeliver(ctx context.Context) error
	Writable(ctx context.Context) bool
	Renew(err error)
}

// A sliceInbox is the inbox as the tenure of a slice uses it: [tenureInbox] implements it. All
// goroutines of the tenure may use it. A method without a comment is that of [inbox.Tenure].
type sliceInbox interface {
	// Own takes the slice or, if the consumer is not ordered, joins the other processes.
	Own(ctx context.Context) (inbox.SliceState, error)
	Lost(ctx context.Context, until uint64) error
	Redelivered(ctx context.Context) error
	LastKnown(ctx context.Context, floor uint64) (id uuid.UUID, seq uint64, err error)
	Wake(ctx context.Context) error
	Held(ctx context.Context) (keys []string, err error)
	Save(ctx context.Context, floor, high uint64, stored time.Time) error
	Leave(ctx context.Context) error

	Known(ctx context.Context, all []*inbox.Message) (map[uuid.UUID]uint64, error)
	Copies(ctx context.Context, places []uuid.UUID, seqs []int64) error

	Take(ctx context.Context, want inbox.TakeFilter) ([]*inbox.Intent, error)
	TakeNext(ctx context.Context, keys []string, most int) ([]*inbox.Intent, error)
	GiveBack(ctx context.Context, i *inbox.Intent, wait time.Duration, counts bool) error
	Holds(ctx context.Context, key string) (bool, error)
	Remember(ctx context.Context, i *inbox.Intent, began time.Time, took time.Duration) error

	Claim(ctx context.Context, all []*inbox.Message, fn func(tx pgx.Tx, fresh []bool) error) error
	Check(ctx context.Context, fn func(tx pgx.Tx) error) error

	// In a transaction of Claim or Check.
	CheckTx(ctx context.Context, tx pgx.Tx) error
	Ended(tx pgx.Tx) bool
	Unclaim(ctx context.Context, tx pgx.Tx, all []*inbox.Message) error
	Finish(ctx context.Context, tx pgx.Tx, all []*inbox.Intent, began time.Time, took time.Duration) error
	Again(ctx context.Context, tx pgx.Tx, i *inbox.Intent, wait time.Duration, e inbox.Ending) error
	Log(ctx context.Context, tx pgx.Tx, m *inbox.Message, e inbox.Ending) error
	Intend(ctx context.Context, tx pgx.Tx, all []*inbox.Message, f inbox.NewIntent) (fresh []bool, err error)
	Bury(ctx context.Context, tx pgx.Tx, dead inbox.Burial) (fresh bool, err error)

	NameLock(ctx context.Context, err error) error
	Prune(ctx context.Context, keep inbox.Retention) (more bool, err error)
	counter
}

// lockTime is less than pingTime: the server reports a lock before the session gives the connection
// up, as it does if the server is unreachable.
const lockTime = "4s"

// A connection is a session's direct connection to PostgreSQL, which holds its locks, and the pool.
type connection struct {
	*run
	session string

	// Used only by the session's goroutine.
	conn    *pgx.Conn // nil before Open
	version inbox.Version
}

// connect returns a connection for a session, which is not open yet.
func (r *run) connect(session string) database { return &connection{run: r, session: session} }

func (c *connection) Open(ctx context.Context) (v inbox.Version, err error) {
	direct := c.Runner.Direct
	if direct == nil {
		direct, err = postgres.ConnConfig(ctx, c.db.Pool)
	}
	if err == nil {
		c.conn, err = lead.Connect(ctx, direct, "consumer "+c.Consumer.Name, "pgjet-"+c.Consumer.Name,
			postgres.Setting{Name: "lock_timeout", Value: lockTime})
	}
	if err != nil {
		return v, &inbox.Error{What: "connect", Err: err}
	}
	if err := postgres.CheckNames(ctx, c.db.Pool); err != nil {
		return v, &inbox.Error{What: "look at the pool", Err: err}
	}
	if err := inbox.Announce(ctx, c.conn, c.session); err != nil {
		return v, err
	}
	c.version, err = inbox.ReadVersion(ctx, c.conn)
	return c.version, err
}

func (c *connection) Close() {
	if c.conn != nil {
		lead.Close(c.conn)
	}
}

func (c *connection) Closed() bool { return c.conn == nil || c.conn.IsClosed() }
func (c *connection) PID() int64   { return int64(c.conn.PgConn().PID()) }

func (c *connection) Join(ctx context.Context, name string, standby func(lead.Holder)) error {
	return lead.Join(ctx, c.conn, name, standby)
}

func (c *connection) Try(ctx context.Context, name string) (bool, error) {
	return lead.Try(ctx, c.conn, name)
}

func (c *connection) Leave(ctx context.Context, name string) error {
	return lead.Leave(ctx, c.conn, name)
}

func (c *connection) Release(ctx context.Context, name string) error {
	return lead.Release(ctx, c.conn, name)
}

func (c *connection) Holders(ctx context.Context, names []string) (map[string][]lead.Holder, error) {
	return lead.Holders(ctx, c.conn, names...)
}

func (c *connection) Locate(ctx context.Context) (here rivals.Presence, elsewhere bool, err error) {
	return inbox.Locate(ctx, c.conn, c.Consumer.Name)
}

func (c *connection) ForgetPlace(ctx context.Context) error {
	return inbox.ForgetPlace(ctx, c.any(), c.Consumer.Name)
}

// any returns the connection, or the pool while there is none.
func (c *connection) any() inbox.DB {
	if c.Closed() {
		return c.db
	}
	return c.conn
}

func (c *connection) Identity(ctx context.Context) (inbox.Identity, error) {
	return inbox.ReadIdentity(ctx, c.conn)
}

func (c *connection) Abandon(ctx context.Context, sessions []string) error {
	return inbox.Abandon(ctx, c.conn, c.Consumer.Name, sessions)
}

func (c *connection) ReadMark(ctx context.Context) (inbox.Mark, error) {
	return inbox.ReadMark(ctx, c.conn, c.Consumer.Name)
}

func (c *connection) Register(ctx context.Context, r inbox.Registration) (is inbox.Registered, err error) {
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) (err error) {
		is, err = inbox.Register(ctx, tx, r)
		return err
	})
	return is, err
}

func (c *connection) ReadPause(ctx context.Context) (*inbox.Paused, error) {
	return inbox.ReadPause(ctx, c.conn, c.Consumer.Name)
}

// Heartbeat uses the pool while there is no connection: the direct address may lead to a pooler,
// which accepts statements.
func (c *connection) Heartbeat(ctx context.Context, b inbox.Beat) error {
	if !c.Closed() {
		return inbox.Heartbeat(ctx, c.conn, b)
	}
	if err := postgres.CheckNames(ctx, c.db.Pool); err != nil {
		return err
	}
	return inbox.Heartbeat(ctx, c.db, b)
}

func (c *connection) RemoveProcess(ctx context.Context, process string) error {
	return inbox.RemoveProcess(ctx, c.conn, c.Consumer.Name, process)
}

func (c *connection) Current(ctx context.Context, v inbox.Version, epochs []int64) (current, due bool, err error) {
	return inbox.Current(ctx, c.conn, c.Consumer.Name, c.session, v, epochs)
}

func (c *connection) Depose(ctx context.Context, s inbox.Slice) error {
	return inbox.Depose(ctx, c.conn, c.Consumer.Name, s)
}

func (c *connection) Save(ctx context.Context, t *inbox.Tenure, floor, high uint64, stored time.Time) error {
	return t.Save(ctx, c.conn, floor, high, stored)
}

func (c *connection) TableLock(ctx context.Context) (*lead.TableLock, error) {
	return inbox.TableLock(ctx, c.conn)
}

func (c *connection) Holder(ctx context.Context) (*lead.Holder, error) {
	return inbox.Holder(ctx, c.conn, c.Consumer.Name)
}

func (c *connection) Divide(ctx context.Context, slices int) error {
	return inbox.Supersede(ctx, c.db.Pool, c.Consumer.Name, func(tx pgx.Tx) error {
		return inbox.Divide(ctx, tx, c.Consumer.Name, slices)
	})
}

// Rebuild calls clear, if a replay still asks for it.
func (c *connection) Rebuild(ctx context.Context, clear func(ctx context.Context, tx pgx.Tx) error) error {
	return inbox.Supersede(ctx, c.db.Pool, c.Consumer.Name, func(tx pgx.Tx) error {
		asked, err := inbox.Rebuilt(ctx, tx, c.Consumer.Name)
		if err != nil || !asked { // another process did it
			return err
		}
		return clear(ctx, tx)
	})
}

func (c *connection) Redeliver(ctx context.Context) error {
	return inbox.Supersede(ctx, c.db.Pool, c.Consumer.Name, func(tx pgx.Tx) error {
		return inbox.Redeliver(ctx, tx, c.Consumer.Name)
	})
}

func (c *connection) NameLock(ctx context.Context, err error) error {
	return inbox.NameLock(ctx, c.any(), err)
}

// Writable reports whether the database answers, accepts writes, and is the one with which the
// session began: a server that has started since was away. If handlers hold all connections of the
// pool, it opens a new one.
func (c *connection) Writable(ctx context.Context) bool {
	same := func(ctx context.Context, db inbox.DB) bool {
		v, err := inbox.ReadVersion(ctx, db)
		return err == nil && v == c.version
	}
	pooled, cancel := context.WithTimeout(ctx, pingTime/2)
	defer cancel()
	err := postgres.CheckWritable(pooled, c.db.Pool)
	if err == nil {
		return same(pooled, c.db)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	conn, err := pgx.ConnectConfig(ctx, c.db.Config().ConnConfig)
	if err != nil {
		return false
	}
	defer lead.Close(conn)
	return postgres.CheckWritable(ctx, conn) == nil && same(ctx, conn)
}

// Renew has all connections of the pool replaced if err is a statement of this package that the
// database refused: a handler may have changed a connection, for example with set role.
func (c *connection) Renew(err error) {
	if _, refused := errors.AsType[*pgconn.PgError](err); refused {
		c.db.Reset()
	}
}

func (c *connection) Inbox(t *inbox.Tenure) sliceInbox {
	return &tenureInbox{t, reader{t.DB, t.Consumer}}
}

// A tenureInbox is an [inbox.Tenure] and a [reader].
type tenureInbox struct {
	*inbox.Tenure
	reader
}

func (t *tenureInbox) Save(ctx context.Context, floor, high uint64, stored time.Time) error {
	return t.Tenure.Save(ctx, t.DB, floor, high, stored)
}

func (t *tenureInbox) NameLock(ctx context.Context, err error) error {
	return inbox.NameLock(ctx, t.DB, err)
}
