package migrations_test

import (
	"testing"

	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestBounds: rows that the programs could not read or continue from are refused.
func TestBounds(t *testing.T) {
	db := testenv.Postgres(t)
	_, err := db.Exec(t.Context(), `
		insert into users.users (id, email, name, password) values (gen_random_uuid(), 'ann@example.com', 'Ann', 'x');
		insert into directory.users values (gen_random_uuid(), 'ann@example.com', 'Ann', now(), 'ann', 'ann@example.com');
		insert into directory.signups values ('2026-01-01', 1, now());
		insert into pgjet.leader (stream, epoch) values ('S', 1);
		insert into pgjet.consumer (name, stream, stream_created, ordered, effects) values ('d', 'S', now(), true, false);
		insert into pgjet.saga (id, name, key, input) values (gen_random_uuid(), 's', 'k', '{}')`)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []string{
		`users.users set created_at = 'infinity'`,
		`users.users set created_at = '-infinity'`,
		`users.users set created_at = '10000-01-01'`,
		`users.users set created_at = '0002-01-01 BC'`,
		`users.users set roles = '{NULL}'`,
		`users.users set roles = '{{a},{b}}'`,
		`users.users set version = 2147483647`,
		`users.users set version = 0`,
		`users.users set token_generation = 2147483647`,
		`directory.users set created_at = 'infinity'`,
		`directory.users set created_at = '10000-01-01'`,
		`directory.signups set day = 'infinity'`,
		`directory.signups set day = '10000-01-01'`,
		`directory.signups set last_at = '-infinity'`,
		`pgjet.leader set epoch = 1000000000000000000`,
		`pgjet.consumer set epoch = 1000000000000000000`,
		`pgjet.consumer set generation = 1000000000`,
		`pgjet.saga set epoch = 1000000000000000000`,
	} {
		if _, err := db.Exec(t.Context(), `update `+change); !sqlstate.Is(err, "23514") {
			t.Errorf("update %s: %v, want a violation of a check", change, err)
		}
	}
	if _, err := db.Exec(t.Context(), `insert into pgjet.leader (stream, epoch) values ('T', 1000000000000000000)`); !sqlstate.Is(err, "23514") {
		t.Errorf("insert of a huge epoch: %v, want a violation of a check", err)
	}
	for _, c := range []struct{ table, counter, most string }{
		{"users.users", "version", "1000000000"},
		{"users.users", "token_generation", "1000000000"},
		{"pgjet.leader", "epoch", "1000000000000000"},
		{"pgjet.consumer", "epoch", "1000000000000000"},
		{"pgjet.consumer", "generation", "500000000"},
		{"pgjet.saga", "epoch", "1000000000000000"},
	} {
		for _, next := range []string{c.most, c.counter + " + 1", c.counter + " + 1"} {
			if _, err := db.Exec(t.Context(), `update `+c.table+` set `+c.counter+` = `+next); err != nil {
				t.Errorf("%s of %s to %s: %v, want it to go on", c.counter, c.table, next, err)
			}
		}
	}
}
