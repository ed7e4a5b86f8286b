// Package directory is a read model: who signed up, found by the beginning of a name or
// an address, and how many did on each day.
//
// It is derived from user.created events alone, in a schema of its own. The rows of an
// event commit together with its inbox row, so each counts once. What is shown lags behind
// the events by as much as the consumer does. A replay of everything rebuilds it, and the
// result is the same as what grew event by event.
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

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// Name is that of the durable consumer.
const Name = "directory"

// Consumer returns the consumer that keeps the directory.
func Consumer() consumers.Consumer {
	return consumers.Consumer{
		Name: Name, Types: []string{events.UserCreated{}.EventType()},
		HandleBatch: enter, Clear: forget,
	}
}

// enter enters new users. One that is there already is not counted again.
func enter(ctx context.Context, tx pgx.Tx, all []events.Event) error {
	var ids []uuid.UUID
	var emails, names, emailKeys, nameKeys []string
	var times []time.Time
	for _, e := range all {
		u, err := events.Decode[events.UserCreated](e)
		if err != nil {
			return backoff.Permanent(err)
		}
		id, err := uuid.Parse(u.UserID)
		if err != nil {
			return backoff.Permanent(errors.New("user_id is no UUID"))
		}
		if strings.ContainsRune(u.Email+u.Name, 0) {
			return backoff.Permanent(errors.New("name or address has a NUL, which PostgreSQL cannot store"))
		}
		ids, emails, names, times = append(ids, id), append(emails, u.Email), append(names, u.Name), append(times, u.CreatedAt)
		emailKeys, nameKeys = append(emailKeys, strings.ToLower(u.Email)), append(nameKeys, strings.ToLower(u.Name))
	}
	_, err := tx.Exec(ctx, `
		with entered as (
			insert into directory.users (id, email, name, created_at, email_key, name_key)
			select distinct on (id) id, email, name, created_at, email_key, name_key
			  from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[])
			       with ordinality as u (id, email, name, created_at, email_key, name_key, n)
			 order by id, n
			on conflict (id) do nothing
			returning created_at
		)
		insert into directory.signups as s (day, users)
		select (created_at at time zone 'UTC')::date, count(*) from entered group by 1
		on conflict (day) do update set users = s.users + excluded.users`, ids, emails, names, times, emailKeys, nameKeys)
	if err != nil {
		return fmt.Errorf("enter %d users: %w", len(all), err)
	}
	return nil
}

// forget empties the directory, for a replay of everything.
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
