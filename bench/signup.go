package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// Numbers of clients that sign up at a time. With the real hash, there are as many as
// processors.
const (
	signUpClients     = 16
	realSignUpClients = 4
)

// signUp measures the price of the outbox record: each round measures with and without one,
// in turns.
func signUp(o options) scenario {
	d := orQuick(o, 3*time.Second, 2*time.Second)
	return scenario{
		name: "sign-up", title: "sign-ups with and without an event, 16 at a time, 4 with the real hash",
		note: "Each round measures both in turns of a few hundred milliseconds, from one process. The transactions insert a user, and the " +
			"event or not: in one round trip, or between BEGIN and COMMIT. The requests go over HTTP to the user service, a process of its own as " +
			"in production; without an event means that a rule in the database does nothing instead of the insert into the outbox, the rest is the " +
			"same. Its limits of rates are off, and its hash is argon2id with 8 KiB and one pass, or the real one with 19 MiB and two.",
		variants: []variant{
			signUpTransactions("one round trip, Queue", d, insertAlone, insertQueue),
			signUpTransactions("one statement by hand", d, insertAlone, insertByHand).once(),
			signUpTransactions("BEGIN and COMMIT, Append", d, insertBetween, insertAppend),
			signUpRequests("HTTP, stubbed hash", d, false),
			signUpRequests("HTTP, real hash", 2*d, true).once(),
		},
	}
}

// A person is a user who signs up. The hash is as long as a real one.
type person struct {
	id    uuid.UUID
	email string
	at    time.Time
}

var nobodysHash = "$argon2id$v=19$m=19456,t=2,p=1$" + strings.Repeat("x", 22) + "$" + strings.Repeat("y", 43)

func newPerson() person {
	id := uuid.Must(uuid.NewV7())
	return person{id, id.String() + "@example.com", time.Now().UTC().Truncate(time.Microsecond)}
}

func (p person) columns() []any {
	return []any{p.id, p.email, "Some Name", nobodysHash, p.at}
}

func (p person) created() events.UserCreated {
	return events.UserCreated{UserID: p.id.String(), Email: p.email, Name: "Some Name", CreatedAt: p.at}
}

const insertPerson = `insert into users.users (id, email, name, password, created_at) values ($1, $2, $3, $4, $5)`

func insertAlone(ctx context.Context, db *pgxpool.Pool) error {
	_, err := db.Exec(ctx, insertPerson, newPerson().columns()...)
	return err
}

func insertQueue(ctx context.Context, db *pgxpool.Pool) error {
	p, b := newPerson(), &pgx.Batch{}
	b.Queue(insertPerson, p.columns()...)
	if err := outbox.Queue(ctx, b, p.created()); err != nil {
		return err
	}
	return db.SendBatch(ctx, b).Close()
}

func insertByHand(ctx context.Context, db *pgxpool.Pool) error {
	p := newPerson()
	e, err := events.New(p.created())
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, `
		with u as (`+insertPerson+`)
		insert into pgjet.outbox (id, type, key, data) values ($6, $7, $8, $9)`,
		append(p.columns(), e.ID, e.Type, e.Key, string(e.Data))...)
	return err
}

func insertBetween(ctx context.Context, db *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, insertPerson, newPerson().columns()...)
		return err
	})
}

func insertAppend(ctx context.Context, db *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		p := newPerson()
		if _, err := tx.Exec(ctx, insertPerson, p.columns()...); err != nil {
			return err
		}
		return outbox.Append(ctx, tx, p.created())
	})
}

// signUpTransactions measures two transactions that store a user, the second with an event.
func signUpTransactions(name string, d time.Duration, without, with func(context.Context, *pgxpool.Pool) error) variant {
	return variant{name: name, group: "transactions", run: func(ctx context.Context, l *lab) (result, error) {
		s, err := signUpSite(ctx, l)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		a := &side{lab: l, clients: signUpClients, service: ownUsage, do: func(ctx context.Context) error { return without(ctx, s.db) }}
		b := &side{lab: l, clients: signUpClients, service: ownUsage, do: func(ctx context.Context) error { return with(ctx, s.db) }}
		if err := takeTurns(ctx, d, d/16, a, b); err != nil {
			return result{}, err
		}
		if err := s.wantSignedUp(ctx, a.all+b.all, b.all); err != nil {
			return result{}, err
		}
		return price(a, b), nil
	}}
}

// signUpSite makes a site that is ready for sign-ups.
func signUpSite(ctx context.Context, l *lab) (*site, error) {
	s, err := l.site(ctx, none)
	if err != nil {
		return nil, err
	}
	if err := s.makePartitions(ctx, 1); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// wantSignedUp fails unless the database holds that many users and events.
func (s *site) wantSignedUp(ctx context.Context, users, events int) error {
	var gotUsers, gotEvents int
	err := s.db.QueryRow(ctx, `
		select (select count(*) from users.users), (select count(*) from pgjet.outbox)`).Scan(&gotUsers, &gotEvents)
	if err == nil && (gotUsers != users || gotEvents != events) {
		err = fmt.Errorf("there are %d users and %d events, want %d and %d", gotUsers, gotEvents, users, events)
	}
	return err
}
