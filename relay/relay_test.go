package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const patience = 20 * time.Second

type noted struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (noted) EventType() string  { return "note.made" }
func (n noted) EventKey() string { return n.Key }

// A bench is a database, a stream, and the relays between them.
type bench struct {
	*testing.T
	db  *pgxpool.Pool
	js  jetstream.JetStream
	url string
	n   int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	_, url := testenv.JetStream(t)
	return newBenchOn(t, url)
}

// newBenchOn returns a bench on the NATS server at url.
func newBenchOn(t *testing.T, url string) *bench {
	t.Helper()
	b := &bench{T: t, db: testenv.Postgres(t), js: testenv.Connect(t, url), url: url}
	b.createStream()
	return b
}

func (b *bench) createStream() {
	b.Helper()
	if _, _, err := relay.EnsureStream(b.Context(), b.js, relay.StreamConfig("EVENTS", 1)); err != nil {
		b.Fatal(err)
	}
}

// append commits count events, a transaction each, with keys taken in turn.
func (b *bench) append(count int) {
	b.Helper()
	for range count {
		b.n++
		err := pgx.BeginFunc(b.Context(), b.db, func(tx pgx.Tx) error {
			return outbox.Append(b.Context(), tx, noted{fmt.Sprint("k", b.n%7), b.n})
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// start runs a relay until stop is called or the test ends.
func (b *bench) start() (r *relay.Relay, stop func()) {
	b.Helper()
	return b.startLogged(testenv.Logger(b))
}

// startLogged is start with a log of the test's own.
func (b *bench) startLogged(log *slog.Logger) (r *relay.Relay, stop func()) {
	b.Helper()
	config := b.db.Config().ConnConfig.Copy()
	config.RuntimeParams["role"] = "pgjet_relay" // no more rights than it needs
	r = &relay.Relay{Database: config, NATSURL: b.url, Source: "/test", Log: log}
	return r, testenv.Run(b, r.Run)
}

// stored returns the ids in the stream, in order.
func (b *bench) stored() []string {
	b.Helper()
	stream, err := b.js.Stream(b.Context(), "EVENTS")
	if err != nil {
		b.Fatal(err)
	}
	var ids []string
	state := stream.CachedInfo().State
	for seq := max(state.FirstSeq, 1); seq <= state.LastSeq; seq++ {
		msg, err := stream.GetMsg(b.Context(), seq)
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, msg.Header.Get("ce-id"))
	}
	return ids
}

// committed returns the ids in the outbox, in order of seq.
func (b *bench) committed() []string {
	b.Helper()
	rows, err := b.db.Query(b.Context(), `select id::text from pgjet.outbox order by seq`)
	if err != nil {
		b.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.Fatal(err)
	}
	return ids
}

// settled waits until every committed event is in the stream, once and in order.
func (b *bench) settled() {
	b.Helper()
	want := b.committed()
	testenv.Eventually(b, patience, "all events are in the stream", func() bool {
		info, err := b.js.Stream(b.Context(), "EVENTS")
		return err == nil && info.CachedInfo().State.Msgs >= uint64(len(want))
	})
	if got := b.stored(); !slices.Equal(got, want) {
		b.Errorf("the stream holds %d events, the outbox %d, or they differ in order", len(got), len(want))
	}
}

func (b *bench) ready(r *relay.Relay) {
	b.Helper()
	testenv.Eventually(b, patience, "the relay is ready", func() bool { return r.Ready(b.Context()) == nil })
}

// blocked waits until the relay reports this cause.
func (b *bench) blocked(r *relay.Relay, cause string) {
	b.Helper()
	testenv.Eventually(b, patience, "the relay is blocked by "+cause, func() bool {
		err := r.Ready(b.Context())
		return err != nil && strings.Contains(err.Error(), cause)
	})
}

func TestPublishesWhatIsCommitted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.append(3)
	r, _ := b.start()
	b.settled()
	b.ready(r)
	b.append(2500)
	b.settled()

	stream, err := b.js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetMsg(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	e, err := events.FromMessage(msg.Header, msg.Data)
	if err != nil || e.Key != "k2" || e.Source != "/test" || string(e.Data) != `{"key":"k2","n":2}` || e.Seq != 2 {
		t.Errorf("message 2 is %+v, %v", e, err)
	}
	if want := events.Subject("note.made", "k2"); msg.Subject != want {
		t.Errorf("subject = %s, want %s", msg.Subject, want)
	}
}

// appendAtOnce commits count events in one transaction.
func (b *bench) appendAtOnce(count int, pad string) {
	b.Helper()
	var all []events.Payload
	for range count {
		b.n++
		all = append(all, noted{fmt.Sprint("k", b.n%7, pad), b.n})
	}
	err := pgx.BeginFunc(b.Context(), b.db, func(tx pgx.Tx) error {
		return outbox.Append(b.Context(), tx, all...)
	})
	if err != nil {
		b.Fatal(err)
	}
}

// TestPublishesABacklog: a large append goes as a batch where the stream supports batches,
// else as a chain, with the same result.
func TestPublishesABacklog(t *testing.T) {
	t.Parallel()
	for _, batches := range []bool{true, false} {
		t.Run(fmt.Sprint("batches=", batches), func(t *testing.T) {
			b := newBench(t)
			if !batches {
				if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
					t.Fatal(err)
				}
				config := relay.StreamConfig("EVENTS", 1)
				config.AllowAtomicPublish = false
				if _, err := b.js.CreateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
			}
			b.appendAtOnce(2500, "")
			_, stop := b.start()
			b.settled()
			b.appendAtOnce(40, strings.Repeat("x", 200))
			b.append(3)
			b.settled()
			stop()
			stream, err := b.js.Stream(t.Context(), "EVENTS")
			if err != nil {
				t.Fatal(err)
			}
			msg, err := stream.GetMsg(t.Context(), 1500) // of the second append: it tries both
			if err != nil {
				t.Fatal(err)
			}
			if got := msg.Header.Get("Nats-Batch-Sequence") != ""; got != batches {
				t.Errorf("sent as a batch: %t, want %t", got, batches)
			}
		})
	}
}

func TestBoundsAnAppendByBytes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	big := events.Event{Type: "note.made", Key: "k", Data: []byte(`"` + strings.Repeat("x", 900<<10-2) + `"`)}
	err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, slices.Repeat([]events.Payload{big}, 40)...)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.start()
	b.settled()
}

func TestResumesWhereItStopped(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, stop := b.start()
	b.append(50)
	b.settled()
	stop()
	b.append(50)
	b.start()
	b.settled()
}

// checkpoints returns how many there have been.
func (b *bench) checkpoints() (n int64) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), `select coalesce(max(id), 0) from pgjet.checkpoint`).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

// TestCrashBeforeCheckpoint deletes the record of the work done, as after a crash between
// publishing and recording.
func TestCrashBeforeCheckpoint(t *testing.T) {
	t.Parallel()
	for name, forget := range map[string]string{
		"all checkpoints":   `delete from pgjet.checkpoint`,
		"newest checkpoint": `delete from pgjet.checkpoint where id = (select max(id) from pgjet.checkpoint)`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			_, stop := b.start()
			for range 3 {
				before := b.checkpoints()
				b.append(40)
				b.settled()
				testenv.Eventually(t, patience, "a checkpoint falls in between", func() bool { return b.checkpoints() > before })
			}
			stop()
			if _, err := b.db.Exec(t.Context(), forget); err != nil {
				t.Fatal(err)
			}
			b.append(10)
			b.start()
			b.settled()
		})
	}
}

func TestLateCommitAcrossRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	late, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback(context.Background())
	if err := outbox.Append(t.Context(), late, noted{"late", 0}); err != nil {
		t.Fatal(err)
	}
	_, stop := b.start()
	b.append(20)
	testenv.Eventually(t, patience, "the others are published", func() bool { return len(b.stored()) == 20 })
	stop()
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.start()
	testenv.Eventually(t, patience, "the late one is published", func() bool { return len(b.stored()) == 21 })
	if got, want := b.stored()[20], b.committed()[0]; got != want {
		t.Errorf("the last event is %s, want the late one, %s", got, want)
	}
}

func TestOneLeadsTheOtherStandsBy(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first, stop := b.start()
	b.ready(first)
	second, _ := b.start()
	testenv.Eventually(t, patience, "the second is ready to take over", func() bool {
		role, _ := second.Role()
		return role == "standby" && second.Ready(t.Context()) == nil
	})
	if role, _ := first.Role(); role != "leader" {
		t.Errorf("the first has the role %q, want leader", role)
	}
	b.append(20)
	b.settled()
	stop()
	b.ready(second)
	b.append(20)
	b.settled()
}

// TestManyRelaysComeAndGo has five relays displace each other all the time.
func TestManyRelaysComeAndGo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var stops []func()
	for range 5 {
		_, stop := b.start()
		stops = append(stops, stop)
	}
	for i := range 10 {
		b.append(30)
		stops[i%5]()
		_, stops[i%5] = b.start()
	}
	b.settled()
}

func TestSaysThatTheStreamIsMissing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	r, _ := b.start()
	b.append(5)
	b.blocked(r, "stream_missing")
	b.createStream()
	b.settled()
}

func TestRefillsARecreatedStream(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r, _ := b.start()
	b.append(30)
	b.settled()
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	b.append(1)
	b.blocked(r, "stream_missing")
	b.createStream()
	b.settled()
}

// TestIdleRelayRefills: events that a stream lost are published again even if no service
// appends.
func TestIdleRelayRefills(t *testing.T) {
	relay.SetLookEvery(t, 300*time.Millisecond)
	b := newBench(t)
	b.start()
	b.append(30)
	b.settled()
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	b.createStream()
	b.settled()
}

func TestSurvivesPostgreSQLOutage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r, _ := b.start()
	b.append(10)
	b.settled()
	_, err := b.db.Exec(t.Context(), `
		select pg_terminate_backend(pid) from pg_stat_activity
		 where application_name = 'pgjet-relay' and datname = current_database()`)
	if err != nil {
		t.Fatal(err)
	}
	b.append(10)
	b.settled()
	b.ready(r)
}

func TestSaysThatPostgreSQLIsUnreachable(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config := b.db.Config().ConnConfig.Copy()
	config.Port = 1
	r := &relay.Relay{Database: config, NATSURL: b.url, Log: testenv.Logger(t)}
	testenv.Run(t, r.Run)
	b.blocked(r, "database_unreachable")
}

// TestQuarantine: rows that Append would have refused are set aside, and the others are
// published.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.append(1)
	for _, values := range []string{
		`(gen_random_uuid(), 'user.*', 'k', '{}')`,
		`(gen_random_uuid(), 'a', '', '{}')`,
		`(gen_random_uuid(), 'a', 'k', ('"' || repeat('x', 1000000) || '"')::json)`,
	} {
		if _, err := b.db.Exec(t.Context(), `insert into pgjet.outbox (id, type, key, data) values `+values); err != nil {
			t.Fatal(err)
		}
	}
	b.append(1)
	r, _ := b.start()
	testenv.Eventually(t, patience, "the good ones are published", func() bool { return len(b.stored()) == 2 })
	rows, err := b.db.Query(t.Context(), `select reason from pgjet.quarantine order by seq`)
	if err != nil {
		t.Fatal(err)
	}
	reasons, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(reasons) != 3 {
		t.Fatalf("quarantine holds %q, %v, want 3 rows", reasons, err)
	}
	for i, field := range []string{"type", "key", "data"} {
		if !strings.HasPrefix(reasons[i], "event "+field) {
			t.Errorf("reason %d = %q, want one that names %s", i, reasons[i], field)
		}
	}
	b.ready(r)
}

func TestEnsureStreamShowsDifferences(t *testing.T) {
	t.Parallel()
	js, _ := testenv.JetStream(t)
	want := relay.StreamConfig("EVENTS", 1)
	loose := want
	loose.DenyPurge, loose.Discard = false, jetstream.DiscardOld
	if created, _, err := relay.EnsureStream(t.Context(), js, loose); err != nil || !created {
		t.Fatalf("EnsureStream() = %t, %v, want it created", created, err)
	}
	created, differences, err := relay.EnsureStream(t.Context(), js, want)
	if err != nil || created || len(differences) != 2 {
		t.Errorf("EnsureStream() = %t, %q, %v, want two differences", created, differences, err)
	}
	if _, differences, err = relay.EnsureStream(t.Context(), js, loose); err != nil || len(differences) != 0 {
		t.Errorf("EnsureStream() = %q, %v, want none", differences, err)
	}
}

// TestHintIsHeard: a relay that has been idle for long looks at once when a hint comes. It
// would look again after 50 ms; with hints it takes far less.
func TestHintIsHeard(t *testing.T) { // not in parallel: it measures time
	b := newBench(t)
	r, _ := b.start()
	b.append(1)
	b.settled()
	b.ready(r)
	nc := b.js.Conn()
	measure := func(hint bool) (total time.Duration) {
		for range 10 {
			time.Sleep(120 * time.Millisecond) // the relay slows down
			b.append(1)
			begun := time.Now()
			if hint {
				if err := nc.Publish(events.HintSubject("EVENTS"), nil); err != nil {
					t.Fatal(err)
				}
			}
			b.settled()
			total += time.Since(begun)
		}
		return total
	}
	for range 5 { // other programs may be busy on this machine
		polled, hinted := measure(false), measure(true)
		if hinted < polled*2/3 {
			return
		}
		t.Logf("10 events took %s, with hints %s, want far less", polled, hinted)
	}
	t.Error("hints make no difference")
}

// TestFormsFollowEachOther: a single message names the last one of a batch before it, and
// the session goes on.
func TestFormsFollowEachOther(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r, _ := b.start()
	b.ready(r)
	for range 8 {
		err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
			var many []events.Payload
			for range 64 {
				b.n++
				many = append(many, noted{fmt.Sprint("k", b.n%7), b.n})
			}
			return outbox.Append(t.Context(), tx, many...)
		})
		if err != nil {
			t.Fatal(err)
		}
		b.settled()
		b.named(true)
		b.append(1)
		b.settled()
	}
	b.named(true)
	var epoch int
	if err := b.db.QueryRow(t.Context(), `select epoch from pgjet.leader`).Scan(&epoch); err != nil || epoch != 1 {
		t.Errorf("the relay led %d times (%v), want once", epoch, err)
	}
}
