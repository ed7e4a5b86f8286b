package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/upkeep"
)

// agedOutbox returns the address of a database whose outbox holds a partition with
// three events that were published 100 hours ago, and an event that is pending.
func agedOutbox(t *testing.T) (string, *pgxpool.Pool) {
	t.Helper()
	url := testenv.DatabaseURL(t)
	db, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	for _, sql := range []string{
		`insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', 'k', '{}' from generate_series(1, 3)`,
		`select setval('pgjet.outbox_seq_seq', 50001)`,
		`insert into pgjet.leader (stream, epoch) values ('EVENTS', 1)`,
		`insert into pgjet.checkpoint (stream, stream_created, stream_seq, system_identifier, snapshot, floor, epoch, at)
		 select 'EVENTS', now(), 3, system_identifier, pg_current_snapshot(), 50001, 1, clock_timestamp() - interval '100 hours' from pg_control_system()`,
		`insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'k', '{}')`,
	} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	return url, db
}

func TestOutboxStatus(t *testing.T) {
	t.Parallel()
	url, _ := agedOutbox(t)
	out := must(t, exitOK, "outbox", "status", "--database-url", url)
	for _, w := range []string{"written 4 = published 3 + pending 1 + quarantined 0 + pruned 0\n", "outbox_1 ", "outbox_default ", " ago"} {
		if !strings.Contains(out, w) {
			t.Errorf("outbox status does not say %q:\n%s", w, out)
		}
	}
	var s upkeep.Status
	if err := json.Unmarshal([]byte(must(t, exitOK, "outbox", "status", "-o", "json", "--database-url", url)), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Partitions) != 4 || s.Partitions[0].Events != 3 || s.Partitions[0].Newest == nil || *s.Partitions[0].High != 50001 {
		t.Errorf("partitions are %+v, want 4, with 3 events in the first", s.Partitions)
	}
	if s.Partitions = nil; !cmp.Equal(s, upkeep.Status{Exact: true, Written: 4, Published: 3, Pending: 1}) {
		t.Errorf("status is %+v, want 4 written, 3 published, 1 pending", s)
	}
}

func TestOutboxPrune(t *testing.T) {
	t.Parallel()
	url, db := agedOutbox(t)
	prune := func(want int, args ...string) string {
		t.Helper()
		return must(t, want, append([]string{"outbox", "prune", "--database-url", url}, args...)...)
	}
	if out := prune(exitOK, "--older-than", "101h"); !strings.Contains(out, "nothing to prune") {
		t.Errorf("prune says %q, want that there is nothing to prune", out)
	}
	if out := prune(exitOK, "--dry-run"); out != "would prune outbox_1\n" {
		t.Errorf("dry run says %q, want outbox_1", out)
	}
	if _, err := db.Exec(t.Context(), `insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'r' from pgjet.outbox where seq = 2`); err != nil {
		t.Fatal(err)
	}
	refused(t, exitFindings, []string{"outbox", "prune", "--database-url", url}, "quarantine", "seq 2")
	if _, err := db.Exec(t.Context(), `update pgjet.quarantine set state = 'dropped'`); err != nil {
		t.Fatal(err)
	}
	var p pruneResult
	if err := json.Unmarshal([]byte(prune(exitOK, "-o", "json", "--reason", "disk")), &p); err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(p, pruneResult{Pruned: []string{"outbox_1"}, Events: 3}) {
		t.Errorf("prune says %+v, want outbox_1 and 3 events", p)
	}
	var by, reason string
	err := db.QueryRow(t.Context(), `select by, reason from pgjet.operation order by id desc limit 1`).Scan(&by, &reason)
	if err != nil || !strings.Contains(by, "@") || reason != "disk" {
		t.Errorf("recorded is %q by %q, %v, want disk", reason, by, err)
	}
	if out := must(t, exitOK, "outbox", "status", "--database-url", url); !strings.HasPrefix(out, "written 4 = published 0 + pending 1 + quarantined 0 + pruned 3\n") {
		t.Errorf("outbox status says %s", out)
	}
}

// TestOutboxHeldBack: the status names a stream that holds back partitions which all others have
// published.
func TestOutboxHeldBack(t *testing.T) {
	t.Parallel()
	url, db := agedOutbox(t)
	if _, err := db.Exec(t.Context(), `insert into pgjet.leader (stream, epoch) values ('OLD', 1)`); err != nil {
		t.Fatal(err)
	}
	refused(t, exitFindings, []string{"outbox", "prune", "--database-url", url}, "stream OLD", "delete from pgjet.leader where stream = 'OLD'")
	ends(t, exitOK, "outbox status", url, "stream OLD holds back", "delete from pgjet.leader where stream = 'OLD'")
}

// TestOutboxStatusOfMany: the numbers of a large outbox are estimates, which are fast, and exact if
// no seq was rolled back.
func TestOutboxStatusOfMany(t *testing.T) {
	t.Parallel()
	url, db := agedOutbox(t)
	const many = 150_000
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', 'k', json_build_object('text', repeat('x', 500)) from generate_series(1, $1::int)`, many)
	testenv.Exec(t, db, `insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'r' from pgjet.outbox order by seq desc limit 2`)
	testenv.Exec(t, db, `insert into pgjet.checkpoint (stream, stream_created, stream_seq, system_identifier, snapshot, floor, epoch)
		 select 'EVENTS', now(), 3, system_identifier, pg_current_snapshot(), 100000, 1 from pg_control_system()`)
	read := func(flags ...string) (s upkeep.Status) {
		t.Helper()
		if err := json.Unmarshal([]byte(must(t, exitOK, append([]string{"outbox", "status", "-o", "json", "--database-url", asOperator(url)}, flags...)...)), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	quick, exact := read(), read("--exact")
	if quick.Exact || !exact.Exact || exact.Written != many+4 || exact.Quarantined != 2 || exact.Pending < many/3 {
		t.Errorf("the status is %+v, and exactly %+v", quick, exact)
	}
	quick.Exact = true
	for i := range min(len(quick.Partitions), len(exact.Partitions)) { // the times of their ends; autovacuum changes sizes meanwhile
		q, e := &quick.Partitions[i], &exact.Partitions[i]
		q.Oldest, q.Newest, q.Bytes = e.Oldest, e.Newest, e.Bytes
	}
	if diff := cmp.Diff(exact, quick); diff != "" {
		t.Errorf("the estimate differs: %s", diff)
	}
	testenv.Exec(t, db, `analyze pgjet.outbox`)
	begun := time.Now()
	if says(t, exitOK, "outbox status", asOperator(url), "about written "); time.Since(begun) > time.Second && !raced {
		t.Errorf("it took %s", time.Since(begun))
	}
}
