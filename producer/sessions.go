package producer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/postgres"
)

// A Session is the result of a log-in.
type Session struct {
	Token     string    `json:"token" doc:"The access token, for the header Authorization: Bearer TOKEN."`
	TokenType string    `json:"token_type" enum:"Bearer"`
	ExpiresAt time.Time `json:"expires_at" doc:"Log in again before this."`
}

// newSession is the body of POST /sessions.
type newSession struct {
	Email    string `json:"email" format:"idn-email" maxLength:"254" example:"ann@example.com"`
	Password string `json:"password" format:"password" minLength:"1" maxLength:"256" writeOnly:"true"`
}

type createSessionInput struct{ Body jsonBody[newSession] }

type createSessionOutput struct{ Body Session }

// createSession answers in the same words, after the same work, if the address is unknown
// or the password wrong. Only a client that knows the password learns more.
func (s *Server) createSession(ctx context.Context, in *createSessionInput) (*createSessionOutput, error) {
	n := in.Body.value
	if invalid := n.check(); invalid != nil {
		return nil, invalidFields(invalid)
	}
	var (
		a        account
		outdated bool
	)
	right, err := s.tryPassword(ctx, n.Email, func() (right bool, err error) {
		if a, err = s.accountOf(ctx, n.Email); err != nil {
			return false, fmt.Errorf("find account: %w", err)
		}
		right, outdated, err = s.hasher.verify(ctx, n.Password, a.Password)
		return right && a.ID != uuid.Nil, err
	})
	if err != nil {
		return nil, err
	}
	e := securityEvent{name: "log_in", outcome: "failure"}
	if a.ID != uuid.Nil {
		e.user = a.ID.String()
	}
	if !right {
		e.reason = "credentials_invalid"
		s.record(ctx, e)
		return nil, credentialsInvalid()
	}
	if a.State == "rejected" {
		e.reason = "account_rejected"
		s.record(ctx, e)
		return nil, accountRejected()
	}
	if outdated {
		s.rehash(ctx, a, n.Password)
	}
	who := auth.Identity{Subject: a.ID.String(), Roles: a.Roles, Generation: a.TokenGeneration}
	token, expires, err := s.issuer.Issue(who, s.tuning.Load().TokenLifetime)
	if err != nil {
		return nil, err
	}
	e.outcome = "success"
	s.record(ctx, e)
	return &createSessionOutput{Session{Token: token, TokenType: "Bearer", ExpiresAt: expires}}, nil
}

// check puts n into the form in which it is looked up and returns what is wrong with it. A
// password that is too short is no error here, but a wrong password: it may have been set
// under other rules.
func (n *newSession) check() []FieldError {
	var invalid []FieldError
	email, wrong := checkEmail(n.Email)
	if wrong != nil {
		invalid = append(invalid, *wrong)
	}
	password, wrong := composedPassword(n.Password)
	if wrong != nil {
		invalid = append(invalid, *wrong)
	}
	n.Email, n.Password = email, password
	return invalid
}

func credentialsInvalid() *Problem {
	p := newProblem(http.StatusUnauthorized, "credentials_invalid", "There is no account with this email address and password.")
	p.challenge = "Bearer"
	return p
}

// An account is the part of a user that a log-in needs.
type account struct {
	ID       uuid.UUID
	Password string // its hash
	State    string
	Roles    []string

	TokenGeneration int
}

// accountOf returns the account with this address; the last rejected one, if all were
// rejected. If there is none, it returns an account without an id, with a hash of no
// password.
func (s *Server) accountOf(ctx context.Context, email string) (account, error) {
	a, err := postgres.CollectOne(ctx, s.db.DB, pgx.RowToStructByName[account], `
		select id, password, state, `+rolesColumn+`, token_generation from (
			select * from users.users where lower(email) = lower($1) and state <> 'rejected'
			union all
			select * from users.users where lower(email) = lower($1) and state = 'rejected') of_address
		 order by state = 'rejected', id desc
		 limit 1`, email)
	if errors.Is(err, pgx.ErrNoRows) {
		return account{Password: nobodysHash}, nil
	}
	return a, err
}

// rehash stores the password with today's parameters, unless it was changed meanwhile. If
// that fails, the old hash still works, and the next log-in tries again.
func (s *Server) rehash(ctx context.Context, a account, password string) {
	hash, err := s.hasher.hash(ctx, password)
	if err == nil {
		_, err = s.db.Exec(ctx, `update users.users set password = $3 where id = $1 and password = $2`, a.ID, a.Password, hash)
	}
	if err != nil && !errors.Is(err, errBusy) && ctx.Err() == nil {
		s.log.WarnContext(ctx, "password not hashed anew", "trace_id", traceID(ctx), "err", redact(err))
	}
}

// serveKeys serves the public keys that verify tokens.
func (s *Server) serveKeys() {
	s.mux.HandleFunc("GET /.well-known/jwks.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(s.issuer.JWKS()) // the client may be gone
	})
}
