package main

import (
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestPauseThatCannotBeConfirmed: what runs behind a pause in a script, because it needs that
// nothing is published or attempted, does not run when that is not certain.
func TestPauseThatCannotBeConfirmed(t *testing.T) {
	t.Parallel()
	url := testenv.DatabaseURL(t)
	db := openDB(t, url)
	testenv.Exec(t, db, `insert into pgjet.consumer (name, stream, stream_created) values ('directory', 'EVENTS', now())`)
	testenv.Exec(t, db, `insert into pgjet.leader (stream, epoch, process, since) values ('EVENTS', 1, 'host:1', now())`)
	config := db.Config().ConnConfig.Copy()
	config.RuntimeParams["application_name"] = "pgjet-relay"
	leader, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer lead.Close(leader)
	if taken, err := lead.Try(t.Context(), leader, "pgjet.relay.EVENTS"); err != nil || !taken {
		t.Fatalf("the lead is taken: %t, %v", taken, err)
	}
	attempt, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := inbox.Lock(t.Context(), attempt, "directory", time.Second); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	both.Go(func() {
		refused(t, exitTimeout, words("relay pause --reason test", url), "the pause is recorded", "has not reported that it stopped", "pgjet relay status")
	})
	both.Go(func() {
		refused(t, exitTimeout, words("consumer pause directory --reason test", url), "the pause is recorded", "are still in flight")
	})
	both.Wait()
	if err := attempt.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	says(t, exitOK, "consumer pause directory --reason test", url, "was paused already", "no attempt is in flight")
}
