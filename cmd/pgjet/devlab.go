package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/relay"
)

// labTimeout bounds how long a part of pgjet dev may take to answer the console.
const labTimeout = 5 * time.Second

// lab returns what only the console of pgjet dev shows.
func (d *dev) lab() *console.Dev {
	at := func(port int) string { return "http://" + d.addr(port) }
	fault := func(port int) string { return at(port) + "/fault" }
	lab := &console.Dev{
		Inbox: at(inboxPort) + "/", Docs: at(usersPort) + "/docs", SignUp: d.signUp,
		Lab: []console.Switch{
			{
				ID: "mail-away", Name: "The mail server is out of order",
				Effect: "It answers 451, try again later. The welcome mailer waits and tries again: see Now, and the event. No event is lost, and none dies.",
				On:     hasFault(fault(inboxPort), 451), Set: setFault(fault(inboxPort), 451),
			},
			{
				ID: "mail-refuses", Name: "The mail server refuses every mail",
				Effect: "It answers 550 for good. The welcome mailer gives up at once: the event is a dead letter, to be redriven when this is repaired.",
				On:     hasFault(fault(inboxPort), 550), Set: setFault(fault(inboxPort), 550),
			},
			{
				ID: "billing-away", Name: "Billing does not work",
				Effect: "It answers 503. The saga of each sign-up waits at its step: see Sagas.",
				On:     hasFault(fault(billingPort), http.StatusServiceUnavailable), Set: setFault(fault(billingPort), http.StatusServiceUnavailable),
			},
			{
				ID: "billing-declines", Name: "Billing declines every account",
				Effect: "It answers 402. The saga of each sign-up undoes what it did, and the user gets a mail.",
				On:     hasFault(fault(billingPort), http.StatusPaymentRequired), Set: setFault(fault(billingPort), http.StatusPaymentRequired),
			},
			{
				ID: "profiles-away", Name: devservices.Profiles + " does not work",
				Effect: "It answers 503. The saga of each sign-up waits at its first step, and the user service goes on without profiles.",
				On:     hasFault(fault(profilesPort), http.StatusServiceUnavailable), Set: setFault(fault(profilesPort), http.StatusServiceUnavailable),
			},
			{
				ID: "relay-paused", Name: "The relay is paused",
				Effect: "Nothing is published. Events wait in the outbox, in order: see Now, and Relay, which says who paused it.",
				On: func(ctx context.Context) (bool, error) {
					s, err := relay.ReadStatus(ctx, d.db, d.stream)
					return s.Paused != nil, err
				},
				Set: d.setRelayPaused,
			},
		},
	}
	if d.postgres != nil {
		lab.Lab = append(lab.Lab, console.Switch{
			ID: "postgres-down", Name: "PostgreSQL is out of reach",
			Effect: "Its sessions are ended, and it admits no others. A sign-up is refused, and nothing is lost. These pages show what is missing. When it is repaired, everything goes on by itself.",
			On:     func(ctx context.Context) (bool, error) { admits, err := d.postgres.Admits(ctx); return !admits, err },
			Set:    func(ctx context.Context, broken bool) error { return d.postgres.Admit(ctx, !broken) },
		})
	}
	if d.nats != nil {
		lab.Lab = append(lab.Lab, console.Switch{
			ID: "nats-down", Name: "NATS is down",
			Effect: "The server of this set-up is stopped. Sign-ups go on, and the outbox keeps their events. What NATS knows is missing on these pages, and the rest is there.",
			On:     func(context.Context) (bool, error) { return d.ownNATS().Healthy() != nil, nil },
			Set:    d.setNATSDown,
		})
	}
	return lab
}

// setRelayPaused pauses or resumes the relay.
func (d *dev) setRelayPaused(ctx context.Context, broken bool) (err error) {
	const why = "a switch of the lab"
	if broken {
		_, _, err = relay.Pause(ctx, d.db, d.stream, actor(), why)
	} else {
		_, err = relay.Resume(ctx, d.db, d.stream, actor(), why)
	}
	return err
}

// ownNATS returns the NATS server of this run. It may be stopped.
func (d *dev) ownNATS() *devserver.NATS {
	d.natsLock.Lock()
	defer d.natsLock.Unlock()
	return d.nats
}

// setNATSDown stops the NATS server of this run, or starts it again with its data.
func (d *dev) setNATSDown(_ context.Context, broken bool) error {
	d.natsLock.Lock()
	defer d.natsLock.Unlock()
	running := d.nats.Healthy() == nil
	switch {
	case broken && running:
		d.nats.Stop()
	case !broken && !running:
		again, err := devserver.StartNATS(d.nats.Options())
		if err != nil {
			return err
		}
		d.nats = again
	}
	return nil
}

// hasFault returns a function that reports whether the fault switch at url is set to status.
func hasFault(url string, status int) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		var now struct{ Status int }
		err := call(ctx, http.MethodGet, url, nil, &now)
		return now.Status == status, err
	}
}

// setFault returns a function that sets or clears the fault switch at url.
func setFault(url string, status int) func(context.Context, bool) error {
	return func(ctx context.Context, broken bool) error {
		if broken {
			return call(ctx, http.MethodPut, url, map[string]int{"status": status}, nil)
		}
		return call(ctx, http.MethodDelete, url, nil, nil)
	}
}

// signUp creates a user at the user service. It returns the user's id.
func (d *dev) signUp(ctx context.Context, email, name string) (string, error) {
	var user struct{ ID string }
	err := call(ctx, http.MethodPost, "http://"+d.addr(usersPort)+"/users", map[string]string{"email": email, "name": name, "password": "correct horse battery"}, &user)
	return user.ID, err
}

// call sends a JSON request to a part of this process, and decodes the answer into out.
func call(ctx context.Context, method, url string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, labTimeout)
	defer cancel()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, &body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var problem struct{ Detail string }
		_ = json.Unmarshal(answer, &problem) // else the status says it
		return fmt.Errorf("%s %s: %s", resp.Status, req.URL.Path, problem.Detail)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}
