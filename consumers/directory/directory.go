// Package directory is a read model: who signed up, found by the beginning of a name or
// an address, and how many did on each day.
//
// # Guarantee
//
// It is derived from user.created events alone, in a schema of its own. The rows of an
// event commit together with its inbox row, and a user that is there already is not
// entered again, so each counts once, however often and in whatever batches the events come.
// What is shown lags behind the events by as much as the consumer does; every answer
// says as of when it is. A replay of everything rebuilds the directory, and the result
// is the same as what grew event by event.
package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/text/unicode/norm"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// Name is that of the durable consumer.
const Name = "directory"

// Consumer returns the consumer that keeps the directory. What can never be entered,
// such as a name with a NUL, is a dead letter at once.
func Consumer() consumers.Consumer {
	return consumers.Consumer{
		Name: Name, Types: []string{events.UserCreated{}.EventType()},
		HandleBatch: enter, Clear: forget,
	}
}

// enter enters new users. One that is there already stays as it is, and is not counted
// again; so of two in one batch the first is entered.
func enter(ctx context.Context, tx pgx.Tx, all []events.Event) error {
	var ids []uuid.UUID
	var emails, names, emailKeys, nameKeys []string
	var times []time.Time
	for _, e := range all {
		u, err := decode(e)
		if err != nil {
			return backoff.Permanent(err)
		}
		ids, emails, names, times = append(ids, u.ID), append(emails, u.Email), append(names, u.Name), append(times, u.CreatedAt)
		emailKeys, nameKeys = append(emailKeys, key(u.Email)), append(nameKeys, key(u.Name))
	}
	_, err := tx.Exec(ctx, `
		with entered as (
			insert into directory.users (id, email, name, created_at, email_key, name_key)
			select id, email, name, created_at, email_key, name_key
			  from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[])
			       with ordinality as u (id, email, name, created_at, email_key, name_key, n)
			 order by id, n
			on conflict (id) do nothing
			returning created_at
		)
		insert into directory.signups as s (day, users, last_at)
		select (created_at at time zone 'UTC')::date, count(*), max(created_at) from entered group by 1 order by 1
		on conflict (day) do update
		   set users = s.users + excluded.users, last_at = greatest(s.last_at, excluded.last_at)`,
		ids, emails, names, times, emailKeys, nameKeys)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "54000" { // program_limit_exceeded
		return backoff.Permanent(errors.New("name or address is too long for an index of PostgreSQL"))
	}
	if err != nil {
		return fmt.Errorf("enter %d users: %w", len(all), err)
	}
	return nil
}

// decode returns the user of an event, if the tables can hold it and JSON can show it.
func decode(e events.Event) (User, error) {
	p, err := events.Decode[events.UserCreated](e)
	if err != nil {
		return User{}, err
	}
	id, err := uuid.Parse(p.UserID)
	if err != nil || id == uuid.Nil {
		return User{}, errors.New("user_id is no UUID")
	}
	if !storable(p.Email) || !storable(p.Name) {
		return User{}, errors.New("name or address has a NUL, which PostgreSQL cannot store")
	}
	at := p.CreatedAt.UTC()
	if at.IsZero() || at.Year() < 1 || at.Year() > 9999 {
		return User{}, errors.New("created_at is missing, or not in the years 1 to 9999 of UTC")
	}
	return User{id, p.Name, p.Email, at}, nil
}

// key returns the form of s in which beginnings are compared: letters in lower case,
// and an umlaut the same whether it came as one character or as two.
func key(s string) string { return norm.NFC.String(strings.ToLower(s)) }

// forget empties the directory, for a replay of everything. Who reads it meanwhile
// does not have to wait, as truncate would have it.
func forget(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `delete from directory.users`)
	if err == nil {
		_, err = tx.Exec(ctx, `delete from directory.signups`)
	}
	if err != nil {
		return fmt.Errorf("empty the directory: %w", err)
	}
	return nil
}
