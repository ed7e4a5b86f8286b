// Package onboarding sets up the account of each new user: a profile, then an account with billing,
// then the user is active. It is a saga, begun by user.created.
//
// # Guarantee
//
// Each user ends active, with one profile and one billing account; or rejected, with neither. The
// state in users.users and the event, user.activated or user.rejected, commit together, once, and
// cancel the reminder that the user is still pending. A user who is deleted meanwhile leaves
// nothing behind, and there is no event; a user who is deleted after becoming active keeps profile
// and account. This holds as long as both services follow their contract. Calls may be repeated
// with the same Idempotency-Key. A deleted object can be deleted again, and a call that arrives
// late does not create it. A call during an outage of a service waits, and spends no attempt.
//
// It belongs to the user service: it writes to the same database.
package onboarding

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/outbox"
)

// Name is the name of the durable consumer and of the saga.
const Name = "onboarding"

// Codes of the reasons for a rejection, besides profile_failed, billing_failed and activate_failed
// of steps that were given up.
const (
	declined     = "billing_declined"
	userGone     = "user_gone"
	userRejected = "user_rejected"
)

// An Onboarding sets up accounts of new users.
type Onboarding struct {
	db                *pgxpool.Pool
	profiles, billing Service
	definition        saga.Definition
}

// New returns an Onboarding that calls two services, for users in db.
func New(db *pgxpool.Pool, profiles, billing Service) *Onboarding {
	o := &Onboarding{db: db, profiles: profiles, billing: billing}
	o.definition = saga.Definition{
		Name: Name,
		Steps: []saga.Step{
			saga.Outside("profile", o.createProfile, o.deleteProfile),
			saga.Outside("billing", o.openAccount, o.closeAccount),
			saga.Local("activate", o.activate, nil),
		},
		Rejected: o.reject,
		Timeout:  10 * time.Second,
	}
	return o
}

// Saga returns the saga, for a [saga.Runner].
func (o *Onboarding) Saga() saga.Definition { return o.definition }

// Consumer returns the consumer that begins the saga for each user.created, once for each user.
func (o *Onboarding) Consumer() consumers.Consumer {
	return consumers.Consumer{Name: Name, Unordered: true, Workers: 4, Handler: consumers.Handle(consumers.On(o.begin))}
}

// begin begins the saga of a user who is still pending. In a replay, the sagas of other users have
// ended, or are forgotten.
func (o *Onboarding) begin(ctx context.Context, tx pgx.Tx, _ events.Event, u events.UserCreated) error {
	id, err := uuid.Parse(u.UserID)
	if err != nil {
		return backoff.Permanent(errors.New("user_id is no UUID"))
	}
	pending := false
	err = tx.QueryRow(ctx, `select exists (select from users.users where id = $1 and state = 'pending')`, id).Scan(&pending)
	if err != nil || !pending {
		return err
	}
	_, err = o.definition.Start(ctx, tx, id.String(), nil)
	return err
}

// createProfile reads the name now: the saga does not store it.
func (o *Onboarding) createProfile(ctx context.Context, s *saga.Saga) error {
	var name string
	err := o.db.QueryRow(ctx, `select name from users.users where id = $1`, s.Key).Scan(&name)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return saga.Refused(userGone)
	case err != nil:
		return away(err)
	}
	return o.profiles.call(ctx, http.MethodPut, "/profiles/"+s.Key, s.DoKey(), map[string]string{"name": name}, nil)
}

func (o *Onboarding) deleteProfile(ctx context.Context, s *saga.Saga) error {
	return o.profiles.call(ctx, http.MethodDelete, "/profiles/"+s.Key, s.UndoKey(), nil, nil)
}

// An account is the result of the billing step.
type account struct {
	ID string `json:"account_id"`
}

func (o *Onboarding) openAccount(ctx context.Context, s *saga.Saga) error {
	var a account
	err := o.billing.call(ctx, http.MethodPost, "/accounts", s.DoKey(), map[string]string{"user_id": s.Key}, &a)
	answer, ok := errors.AsType[*answerError](err)
	switch {
	case ok && answer.status == http.StatusPaymentRequired:
		return saga.Refused(declined)
	case err != nil:
		return err
	case a.ID == "":
		return errors.New("billing opened an account and did not say which")
	}
	return s.Keep(a)
}

// closeAccount closes the account that was opened, or may have been.
func (o *Onboarding) closeAccount(ctx context.Context, s *saga.Saga) error {
	var a account
	known, err := s.Result("billing", &a)
	if err != nil {
		return err
	}
	path := "/accounts/" + url.PathEscape(a.ID)
	if !known {
		path = "/accounts?key=" + url.QueryEscape(s.DoKey())
	}
	return o.billing.call(ctx, http.MethodDelete, path, s.UndoKey(), nil, nil)
}

func (o *Onboarding) activate(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
	var at time.Time
	err := tx.QueryRow(ctx, `
		update users.users set state = 'active', version = version + 1 where id = $1 and state = 'pending'
		returning clock_timestamp()`, s.Key).Scan(&at)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return o.notPending(ctx, tx, s)
	case err != nil:
		return away(err)
	}
	return away(decided(ctx, tx, s, events.UserActivated{UserID: s.Key, ActivatedAt: at.UTC()}))
}

// decided appends the event that ends a user's wait, and cancels the reminder that they are still
// pending.
func decided(ctx context.Context, tx pgx.Tx, s *saga.Saga, e events.Payload) error {
	user, err := uuid.Parse(s.Key)
	if err != nil {
		return err
	}
	if _, err := outbox.Cancel(ctx, tx, events.ReminderID(user)); err != nil {
		return err
	}
	return outbox.Append(ctx, tx, e)
}

// notPending returns the reason why a user is not pending: they are gone, or were activated or
// rejected elsewhere.
func (o *Onboarding) notPending(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
	var state string
	err := tx.QueryRow(ctx, `select state from users.users where id = $1`, s.Key).Scan(&state)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return saga.Refused(userGone)
	case err != nil:
		return away(err)
	case state == "active":
		return nil
	}
	return saga.Refused(userRejected)
}

// reject appends user.rejected, unless the user is gone or not pending any more.
func (o *Onboarding) reject(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
	e := events.UserRejected{UserID: s.Key, Reason: s.Reason}
	err := tx.QueryRow(ctx, `
		update users.users set state = 'rejected', reason = $2, version = version + 1 where id = $1 and state = 'pending'
		returning email, name, clock_timestamp()`, s.Key, s.Reason).Scan(&e.Email, &e.Name, &e.RejectedAt)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return away(err)
	}
	e.RejectedAt = e.RejectedAt.UTC()
	return away(decided(ctx, tx, s, e))
}

// away returns an error of the database as an outage if it is not the fault of one user: it is
// temporary, or needs an operator. Any other error, such as a value that the table does not accept,
// or an event that cannot be published, is a failure of the step.
func away(err error) error {
	if err == nil {
		return nil
	}
	class := sqlstate.Of(err)
	err = fmt.Errorf("table users.users or the outbox: %w", err)
	if class.Passing() || class == sqlstate.Permission || class == sqlstate.Outdated {
		return saga.Unavailable(err)
	}
	return err
}
