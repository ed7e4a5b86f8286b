// Package sqltx presents a transaction of pgx as one of database/sql. Both are the same
// transaction, on the same connection.
package sqltx

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/jackc/pgx/v5"
)

// With calls fn with tx as a transaction of database/sql, and returns fn's error. It
// neither commits tx nor rolls it back. If fn calls Commit or Rollback, that returns an
// error, which With returns unless fn returns one. The [*sql.Tx] ends when fn returns or
// ctx ends; then its methods return [sql.ErrTxDone]. A statement without a context uses
// ctx.
func With(ctx context.Context, tx pgx.Tx, fn func(tx *sql.Tx) error) error {
	c := &conn{ctx: ctx, tx: tx}
	db := sql.OpenDB(c)
	defer db.Close() // closes nothing of tx
	joined, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { // also after a panic
		c.over()
		_ = joined.Rollback()
	}()
	if err := fn(joined); err != nil {
		return err
	}
	return c.misused()
}

// A conn is the only connection of a [sql.DB], and its connector. Whatever database/sql
// ends or closes, tx goes on.
type conn struct {
	ctx context.Context //nolint:containedctx // that of the transaction
	tx  pgx.Tx

	mu     sync.Mutex
	ended  bool  // fn has returned
	misuse error // how fn tried to end tx
}

func (c *conn) Connect(context.Context) (driver.Conn, error) { return c, nil }
func (c *conn) Driver() driver.Driver                        { return c }

// Open implements [driver.Driver], which a connector needs.
func (c *conn) Open(string) (driver.Conn, error) { return nil, errors.ErrUnsupported }

func (c *conn) Close() error              { return nil }
func (c *conn) Begin() (driver.Tx, error) { return c, nil }

func (c *conn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return c, nil }

// Commit returns an error: With's caller goes on with tx.
func (c *conn) Commit() error {
	return c.refuse("Commit", "return nil, and the transaction is committed")
}

// Rollback returns an error, unless database/sql calls it because ctx has ended.
func (c *conn) Rollback() error {
	if c.ctx.Err() != nil {
		return nil
	}
	return c.refuse("Rollback", "return an error, and the transaction is rolled back")
}

func (c *conn) refuse(method, instead string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	c.misuse = fmt.Errorf("%s was called on the transaction that a function was given, which is not its own: %s", method, instead)
	return c.misuse
}

func (c *conn) over() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
}

func (c *conn) misused() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.misuse
}

// CheckNamedValue accepts every argument: pgx knows more types than database/sql.
func (c *conn) CheckNamedValue(*driver.NamedValue) error { return nil }

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	tag, err := c.tx.Exec(c.bounded(ctx), query, values(args)...)
	if err != nil {
		return nil, err
	}
	return driver.RowsAffected(tag.RowsAffected()), nil
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	found, err := c.tx.Query(c.bounded(ctx), query, append([]any{formats}, values(args)...)...)
	if err != nil {
		return nil, err
	}
	r := &rows{rows: found}
	r.first = found.Next() // the columns are known after that
	if err := found.Err(); err != nil {
		return nil, err
	}
	r.plan(c.tx.Conn().TypeMap())
	return r, nil
}

func (c *conn) Prepare(query string) (driver.Stmt, error) { return &stmt{c, query}, nil }

// bounded returns ctx, or that of c if ctx never ends, since fn has a limited time.
func (c *conn) bounded(ctx context.Context) context.Context {
	if ctx.Done() == nil {
		return c.ctx
	}
	return ctx
}

func values(args []driver.NamedValue) []any {
	all := make([]any, len(args))
	for i, a := range args {
		all[i] = a.Value
	}
	return all
}

// A stmt is a text that pgx prepares when it first runs it.
type stmt struct {
	*conn
	query string
}

func (s *stmt) Close() error  { return nil }
func (s *stmt) NumInput() int { return -1 }

func (s *stmt) Exec([]driver.Value) (driver.Result, error) { return nil, errors.ErrUnsupported }
func (s *stmt) Query([]driver.Value) (driver.Rows, error)  { return nil, errors.ErrUnsupported }

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.ExecContext(ctx, s.query, args)
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.QueryContext(ctx, s.query, args)
}

// A rows holds rows of pgx, of which the first was read already.
type rows struct {
	rows    pgx.Rows
	first   bool // it is still to be given
	names   []string
	readers []reader
}

func (r *rows) Columns() []string { return r.names }

func (r *rows) Close() error {
	r.rows.Close()
	return r.rows.Err()
}

func (r *rows) Next(dest []driver.Value) (err error) {
	if !r.first && !r.rows.Next() {
		return cmp.Or(r.rows.Err(), io.EOF)
	}
	r.first = false
	for i, src := range r.rows.RawValues() {
		if dest[i] = nil; src == nil {
			continue
		}
		if dest[i], err = r.readers[i](src); err != nil {
			return fmt.Errorf("read column %s: %w", r.names[i], err)
		}
	}
	return nil
}
