// Package directory is a read model of the users who signed up: it finds them by the beginning of a
// name or an address, and counts the sign-ups of each day.
//
// # Guarantee
//
// It is derived from user.created, user.renamed and user.deleted alone, in a schema of its own. The
// rows of an event commit together with its inbox row, and an existing user is not inserted again.
// So each user counts once, however often and in whatever batches the events are delivered. The
// directory lags behind the events by as much as the consumer does; every answer says as of when it
// is. A replay of everything rebuilds the directory, with the same result as event by event.
//
// A deleted user is removed from the users at once, and no late event brings them back: only their
// id is kept. Their sign-up stays counted on its day, since it happened. A new name of a user who
// is missing, because the stream no longer has their sign-up or it is a dead letter, changes
// nothing.
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
	"golang.org/x/text/unicode/norm"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Name is the name of the durable consumer.
const Name = "directory"

// Consumer returns the consumer that maintains the directory. An event that can never be entered,
// such as a name with a NUL, is a dead letter at once.
func Consumer() consumers.Consumer {
	return consumers.Consumer{
		Name: Name, Handler: consumers.HandleBatch(0, follow, created, renamed, deleted), Clear: forget,
	}
}

var (
	created = events.UserCreated{}.EventType()
	renamed = events.UserRenamed{}.EventType()
	deleted = events.UserDeleted{}.EventType()
)

// makes are the functions that make a group of changes of one type.
var makes = map[string]func(ctx context.Context, tx pgx.Tx, all []change) error{created: enter, renamed: rename, deleted: remove}

// A change is the content of one event about a user. A new name has no address and time; a deletion
// has only the id.
type change struct {
	eventType string
	user      User
}

// follow makes the changes of events, in the order of each user.
func follow(ctx context.Context, tx pgx.Tx, all []events.Event) error {
	var changes []change
	for _, e := range all {
		c, err := decode(e)
		if err != nil {
			return backoff.Permanent(err)
		}
		changes = append(changes, c)
	}
	for _, group := range groups(changes) {
		err := makes[group[0].eventType](ctx, tx, group)
		if sqlstate.Is(err, sqlstate.ProgramLimitExceeded) {
			return backoff.Permanent(errors.New("name or address is too long for an index of PostgreSQL"))
		}
		if err != nil {
			return fmt.Errorf("follow %s of %d users: %w", group[0].eventType, len(group), err)
		}
	}
	return nil
}

// groups returns changes in groups of one type, to be made in this order: changes of one user stay
// in order.
func groups(all []change) (groups [][]change) {
	last := make(map[uuid.UUID]int) // the group of a user
	for _, c := range all {
		n := last[c.user.ID]
		for n < len(groups) && groups[n][0].eventType != c.eventType {
			n++
		}
		if n == len(groups) {
			groups = append(groups, nil)
		}
		groups[n] = append(groups[n], c)
		last[c.user.ID] = n
	}
	return groups
}

// enter inserts new users. An existing user stays unchanged, and is not counted again; so the first
// of two in one group is inserted. A deleted user is only counted.
func enter(ctx context.Context, tx pgx.Tx, all []change) error {
	var ids []uuid.UUID
	var emails, names, emailKeys, nameKeys []string
	var times []time.Time
	for _, c := range all {
		u := c.user
		ids, emails, names, times = append(ids, u.ID), append(emails, u.Email), append(names, u.Name), append(times, u.CreatedAt)
		emailKeys, nameKeys = append(emailKeys, key(u.Email)), append(nameKeys, key(u.Name))
	}
	_, err := tx.Exec(ctx, `
		with given as (
			select distinct on (id) *
			  from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[])
			       with ordinality as u (id, email, name, created_at, email_key, name_key, n)
			 order by id, n
		), entered as (
			insert into directory.users (id, email, name, created_at, email_key, name_key)
			select id, email, name, created_at, email_key, name_key from given
			 where not exists (select from directory.deleted d where d.id = given.id)
			on conflict (id) do nothing
			returning created_at
		), late as (
			update directory.deleted d set counted = true from given where d.id = given.id and not counted
			returning given.created_at
		)
		insert into directory.signups as s (day, users, last_at)
		select (created_at at time zone 'UTC')::date, count(*), max(created_at)
		  from (table entered union all table late) u group by 1 order by 1
		on conflict (day) do update
		   set users = s.users + excluded.users, last_at = greatest(s.last_at, excluded.last_at)`,
		ids, emails, names, times, emailKeys, nameKeys)
	return err
}

// rename gives users their last name in the group. A missing user is skipped.
func rename(ctx context.Context, tx pgx.Tx, all []change) error {
	var ids []uuid.UUID
	var names, nameKeys []string
	for _, c := range all {
		ids, names, nameKeys = append(ids, c.user.ID), append(names, c.user.Name), append(nameKeys, key(c.user.Name))
	}
	_, err := tx.Exec(ctx, `
		update directory.users u set name = last.name, name_key = last.name_key
		  from (select distinct on (id) * from unnest($1::uuid[], $2::text[], $3::text[]) with ordinality as r (id, name, name_key, n)
		         order by id, n desc) last
		 where u.id = last.id`, ids, names, nameKeys)
	return err
}

// remove deletes users for good.
func remove(ctx context.Context, tx pgx.Tx, all []change) error {
	var ids []uuid.UUID
	for _, c := range all {
		ids = append(ids, c.user.ID)
	}
	_, err := tx.Exec(ctx, `
		with gone as (delete from directory.users where id = any($1) returning id)
		insert into directory.deleted (id, counted)
		select distinct u.id, gone.id is not null from unnest($1::uuid[]) as u (id) left join gone using (id) order by 1
		on conflict (id) do nothing`, ids)
	return err
}

// decode returns the content of an event, if the tables can store it and JSON can represent it.
func decode(e events.Event) (change, error) {
	switch e.Type {
	case created:
		return decodeCreated(e)
	case renamed:
		p, err := events.Decode[events.UserRenamed](e)
		if err != nil {
			return change{}, err
		}
		return changeOf(e, p.UserID, User{Name: p.Name})
	case deleted:
		p, err := events.Decode[events.UserDeleted](e)
		if err != nil {
			return change{}, err
		}
		return changeOf(e, p.UserID, User{})
	}
	return change{}, fmt.Errorf("unknown_type: the directory does not know %s", e.Type)
}

func decodeCreated(e events.Event) (change, error) {
	p, err := events.Decode[events.UserCreated](e)
	if err != nil {
		return change{}, err
	}
	at := p.CreatedAt.UTC()
	if at.IsZero() || at.Year() < 1 || at.Year() > 9999 {
		return change{}, errors.New("created_at is missing, or not in the years 1 to 9999 of UTC")
	}
	return changeOf(e, p.UserID, User{Name: p.Name, Email: p.Email, CreatedAt: at})
}

func changeOf(e events.Event, id string, u User) (change, error) {
	var err error
	if u.ID, err = uuid.Parse(id); err != nil || u.ID == uuid.Nil {
		return change{}, errors.New("user_id is no UUID")
	}
	if !storable(u.Email) || !storable(u.Name) {
		return change{}, errors.New("name or address has a NUL, which PostgreSQL cannot store")
	}
	return change{e.Type, u}, nil
}

// key returns the form of s in which beginnings are compared: letters in lower case, and an umlaut
// in the same form whether it was one character or two.
func key(s string) string { return norm.NFC.String(strings.ToLower(s)) }

// forget empties the directory, for a replay of everything. Unlike truncate, it does not block
// readers.
func forget(ctx context.Context, tx pgx.Tx) error {
	for _, table := range []string{"users", "signups", "deleted"} {
		if _, err := tx.Exec(ctx, `delete from directory.`+table); err != nil {
			return fmt.Errorf("empty the directory: %w", err)
		}
	}
	return nil
}
