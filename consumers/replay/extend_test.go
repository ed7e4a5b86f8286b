package replay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A rig is a stream, and a consumer that first handles only note.made.
type rig struct {
	*testing.T
	db     *pgxpool.Pool
	js     jetstream.JetStream
	prefix string // of the subjects
}

func newRig(t *testing.T) *rig {
	t.Helper()
	js, _ := testenv.JetStream(t)
	return newRigOn(t, js, "")
}

func newRigOn(t *testing.T, js jetstream.JetStream, prefix string) *rig {
	t.Helper()
	b := &rig{T: t, db: testenv.Postgres(t), js: js, prefix: prefix}
	_, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{events.SubjectsOf(prefix).All()}, AllowDirect: true})
	if err != nil {
		t.Fatal(err)
	}
	b.exec(`create table handled (n bigint generated always as identity, type text, key text, seq bigint)`)
	return b
}

func (b *rig) exec(sql string, args ...any) {
	b.Helper()
	testenv.Exec(b, b.db, sql, args...)
}

func (b *rig) text(sql string) (text string) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), sql).Scan(&text); err != nil {
		b.Fatal(err)
	}
	return text
}

// publish stores an event of each type and key, such as "note.made a".
func (b *rig) publish(all ...string) {
	b.Helper()
	for _, one := range all {
		eventType, key, _ := strings.Cut(one, " ")
		e, err := events.New(events.Event{Type: eventType, Key: key, Source: "/test", Time: time.Now(), Data: []byte(`{}`)})
		if err != nil {
			b.Fatal(err)
		}
		_, header, data := e.Message()
		if _, err := b.js.PublishMsg(b.Context(), &nats.Msg{Subject: events.SubjectsOf(b.prefix).Of(e.Type, e.Key), Header: header, Data: data}); err != nil {
			b.Fatal(err)
		}
	}
}

// consumer returns a consumer that handles these types. Other types become dead letters.
func (b *rig) consumer(effect bool, types ...string) consumers.Consumer {
	note := func(ctx context.Context, e events.Event) error {
		if !slices.Contains(types, e.Type) {
			return fmt.Errorf("%s is not for this version", e.Type)
		}
		_, err := b.db.Exec(ctx, `insert into handled (type, key) values ($1, $2)`, e.Type, e.Key)
		return err
	}
	c := consumers.Consumer{Name: "notes", Slices: 1, MinRetry: time.Millisecond, MaxRetry: time.Millisecond, MaxAttempts: 1}
	if effect {
		c.Handler, c.Unordered = consumers.Effect(note, types...), true
	} else {
		c.Handler = each(func(ctx context.Context, _ pgx.Tx, e events.Event) error { return note(ctx, e) }, types...)
	}
	return c
}

// each is consumers.Handle with one function for all types.
func each(fn func(ctx context.Context, tx pgx.Tx, e events.Event) error, types ...string) consumers.Handler {
	var all []consumers.Typed
	for _, t := range types {
		all = append(all, consumers.OnType(t, fn))
	}
	return consumers.Handle(all...)
}

// start runs a version of the consumer.
func (b *rig) start(c consumers.Consumer) (r *consumers.Runner, stop func()) {
	b.Helper()
	r = &consumers.Runner{Consumer: c, DB: b.db, JS: b.js, Prefix: b.prefix, Log: slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))}
	return r, testenv.Run(b, r.Run)
}

// handles waits until want events were handled.
func (b *rig) handles(want int) {
	b.Helper()
	testenv.Eventually(b, patience, fmt.Sprint(want, " events are handled"), func() bool {
		return b.text(`select count(*)::text from handled`) == fmt.Sprint(want)
	})
}

func (b *rig) differs(r *consumers.Runner) {
	b.Helper()
	testenv.Eventually(b, patience, "the new version refuses the old durable consumer", func() bool {
		err := r.Ready(b.Context())
		return err != nil && strings.HasPrefix(err.Error(), "consumer_differs:")
	})
}

func (b *rig) extend(c consumers.Consumer) replay.Extended {
	b.Helper()
	want, err := c.Configs(b.prefix)
	if err != nil {
		b.Fatal(err)
	}
	config := b.db.Config().Copy()
	config.ConnConfig.RuntimeParams["role"] = "pgjet_operator" // the rights of an operator suffice
	db, err := pgxpool.NewWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	result, err := replay.Extend(b.Context(), db, b.js, "EVENTS", "notes", want, "ann@host")
	if err != nil {
		b.Fatal(err)
	}
	return result
}

// settled fails unless every event was handled once, none is a dead letter, and the consumer is not
// paused.
func (b *rig) settled() {
	b.Helper()
	if got := b.text(`select concat_ws(' ', (select count(*) from pgjet.dead_letter), (select count(*) from pgjet.consumer where paused_at is not null))`); got != "0 0" {
		b.Errorf("%s dead letters and pauses, want none: %s", got, b.text(`select coalesce(string_agg(error, e'\n'), '') from pgjet.dead_letter`))
	}
	testenv.Eventually(b, patience, "all is accounted for", func() bool {
		a, err := consumers.ReadAccount(b.Context(), b.db, b.js, "EVENTS", "notes")
		return err == nil && a.Unaccounted == 0 && a.InFlight == 0 && a.Lag == 0 && a.Done == a.Events
	})
}

// TestOrderedConsumerGoesBack: earlier events of the new type are handled, none twice, and an old
// process does no harm.
func TestOrderedConsumerGoesBack(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"", "acme.orders"} {
		t.Run(prefix, func(t *testing.T) { testGoesBack(t, prefix) })
	}
}

func testGoesBack(t *testing.T, prefix string) {
	js, _ := testenv.JetStream(t)
	b := newRigOn(t, js, prefix)
	older, newer := b.consumer(false, "note.made"), b.consumer(false, "note.made", "note.kept", "note.torn")
	b.start(older)
	b.publish("note.made 1", "note.kept 2", "note.made 3", "note.kept 4", "note.torn 5", "note.other 6", "note.made 7")
	b.handles(3)
	_, stop := b.start(older) // stands by
	defer stop()
	r, _ := b.start(newer)
	got := b.extend(newer)
	if diff := cmp.Diff(replay.Extended{Types: []string{"note.kept", "note.torn"}, Earlier: 3}, got); diff != "" {
		t.Errorf("Run() differs: %s", diff)
	}
	b.publish("note.kept 8", "note.made 9")
	b.handles(8)
	if got := b.text(`select string_agg(key, ' ' order by key) from handled`); got != "1 2 3 4 5 7 8 9" {
		t.Errorf("handled %s, want each but 6 once", got)
	}
	testenv.Eventually(t, patience, "the new version is ready", func() bool { return r.Ready(t.Context()) == nil })
	b.settled()
	if again := b.extend(newer); len(again.Types) > 0 {
		t.Errorf("Run() = %+v the second time", again)
	}
}

// TestExtendsNoForeignDurable: a durable consumer of another database is not changed, and no
// consumer is paused.
func TestExtendsNoForeignDurable(t *testing.T) {
	t.Parallel()
	b := newRig(t)
	_, stop := b.start(b.consumer(false, "note.made"))
	b.publish("note.made 1", "note.kept 2")
	b.handles(1)
	stop()
	b.exec(`select pgjet.new_identity()`)
	before, err := b.js.Consumer(t.Context(), "EVENTS", "notes")
	if err != nil {
		t.Fatal(err)
	}
	want, err := b.consumer(false, "note.made", "note.kept").Configs("")
	if err != nil {
		t.Fatal(err)
	}
	_, err = replay.Extend(t.Context(), b.db, b.js, "EVENTS", "notes", want, "ann@host")
	if _, foreign := errors.AsType[*inbox.ForeignDurableError](err); !foreign {
		t.Errorf("Extend() = %v, want a ForeignDurableError", err)
	}
	if _, err := replay.Open(t.Context(), b.db, b.js, "notes"); err == nil || !strings.HasPrefix(err.Error(), "foreign_durable: ") {
		t.Errorf("Open() = %v, want foreign_durable", err)
	}
	after, err := b.js.Consumer(t.Context(), "EVENTS", "notes")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before.CachedInfo().Config, after.CachedInfo().Config); diff != "" {
		t.Errorf("the durable consumer was changed: %s", diff)
	}
	if got := b.text(`select concat_ws(' ', (select count(*) from pgjet.operation), (select count(*) from pgjet.consumer where paused_at is not null))`); got != "0 0" {
		t.Errorf("%s operations and pauses, want none", got)
	}
}

// TestOldProcessesEnd: a process of the old version handles nothing more, even if there are no
// earlier events.
func TestOldProcessesEnd(t *testing.T) {
	t.Parallel()
	for _, effect := range []bool{false, true} {
		b := newRig(t)
		older, newer := b.consumer(effect, "note.made"), b.consumer(effect, "note.made", "note.kept")
		b.start(older)
		b.publish("note.made 1")
		b.handles(1)
		if got := b.extend(newer); len(got.Types) != 1 || got.Earlier > 0 {
			t.Errorf("Run() = %+v, want one type and no earlier events", got)
		}
		b.publish("note.kept 2", "note.made 3")
		b.start(newer)
		b.handles(3)
		b.settled()
	}
}

// TestKeysStayInOrder: earlier events of a new type are handled before later ones of their key,
// although the later ones were being delivered when the type was added.
func TestKeysStayInOrder(t *testing.T) {
	t.Parallel()
	b := newRig(t)
	older, newer := b.consumer(false, "note.made"), b.consumer(false, "note.made", "note.kept")
	newer.Handler = each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		_, err := tx.Exec(ctx, `insert into handled (type, key, seq) values ($1, $2, $3)`, e.Type, e.Key, e.Time.UnixMicro())
		return err
	}, "note.made", "note.kept")
	_, stop := b.start(older)
	b.publish("note.made a")
	b.handles(1)
	for range 50 {
		b.publish("note.kept a", "note.made b")
	}
	b.handles(51)
	stop()
	r, _ := b.start(newer)
	b.differs(r)
	if got := b.text(`select count(*)::text from handled`); got != "51" {
		t.Errorf("%s events are handled by a version that the durable consumer does not fit, want 51", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	published := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			b.publish("note.kept a")
		}
		published <- n
	}()
	if got := b.extend(newer); got.Earlier < 50 {
		t.Errorf("Run() = %+v, want 50 earlier events at least", got)
	}
	cancel()
	b.handles(101 + <-published)
	if got := b.text(`select count(*)::text from (select seq < lag(seq) over (order by n) as wrong from handled where type = 'note.kept') x where wrong`); got != "0" {
		t.Errorf("%s events of a key overtook earlier ones", got)
	}
	b.settled()
}

// TestEffectsHappen: the effects certainly did not happen before, so no event is a dead letter.
func TestEffectsHappen(t *testing.T) {
	t.Parallel()
	b := newRig(t)
	older, newer := b.consumer(true, "note.made"), b.consumer(true, "note.made", "note.kept")
	_, stop := b.start(older)
	b.publish("note.made 1", "note.kept 2", "note.made 3", "note.kept 4", "note.made 5")
	b.handles(3)
	stop()
	b.publish("note.made 0") // delivered without a replay
	r, _ := b.start(newer)
	b.differs(r)
	if got := b.extend(newer); got.Earlier != 2 {
		t.Errorf("Run() = %+v, want 2 earlier events", got)
	}
	b.publish("note.kept 6", "note.made 7")
	b.handles(8)
	b.settled()
}

// TestInterrupted: another run finishes what one began, and ends its pause.
func TestExtendInterrupted(t *testing.T) {
	t.Parallel()
	for _, updated := range []bool{false, true} {
		b := newRig(t)
		older, newer := b.consumer(false, "note.made"), b.consumer(false, "note.made", "note.kept")
		_, stop := b.start(older)
		b.publish("note.made 1", "note.kept 2", "note.made 3")
		b.handles(2)
		stop()
		b.exec(`update pgjet.consumer set paused_at = now(), paused_by = 'ann@host', pause_reason = 'types of events are added to the durable consumer'`)
		if updated {
			want, err := newer.Configs("")
			if err == nil {
				_, err = b.js.UpdateConsumer(t.Context(), "EVENTS", want[0])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		b.extend(newer)
		b.start(newer)
		b.handles(3)
		b.settled()
	}
}

// TestPausedStaysSo: a consumer that an operator paused stays paused.
func TestPausedStaysSo(t *testing.T) {
	t.Parallel()
	b := newRig(t)
	older, newer := b.consumer(false, "note.made"), b.consumer(false, "note.made", "note.kept")
	_, stop := b.start(older)
	b.publish("note.kept 1", "note.made 2")
	b.handles(1)
	stop()
	if _, _, err := inbox.Pause(t.Context(), b.db, "notes", "bob@host", "lunch"); err != nil {
		t.Fatal(err)
	}
	if got := b.extend(newer); !got.Paused || len(got.Types) != 1 {
		t.Errorf("Run() = %+v, want it to be paused", got)
	}
	if got := b.text(`select pause_reason from pgjet.consumer`); got != "lunch" {
		t.Errorf("it is paused for %q, want lunch", got)
	}
	if _, err := inbox.Resume(t.Context(), b.db, "notes", "bob@host", "back", ""); err != nil {
		t.Fatal(err)
	}
	b.start(newer)
	b.handles(2)
	b.settled()
}

// TestPausedAndInterrupted: an interrupted extension of a paused consumer is finished by another
// run.
func TestPausedAndInterrupted(t *testing.T) {
	t.Parallel()
	b := newRig(t)
	older, newer := b.consumer(true, "note.made"), b.consumer(true, "note.made", "note.kept")
	_, stop := b.start(older)
	b.publish("note.kept 1", "note.made 2", "note.kept 3")
	b.handles(1)
	stop()
	if _, _, err := inbox.Pause(t.Context(), b.db, "notes", "bob@host", "lunch"); err != nil {
		t.Fatal(err)
	}
	other, err := replay.Open(t.Context(), b.db, b.js, "notes")
	if err == nil {
		err = other.Lock(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	want, err := newer.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	_, err = replay.Extend(t.Context(), b.db, b.js, "EVENTS", "notes", want, "ann@host")
	other.Close()
	if !errors.Is(err, replay.ErrBusy) || !strings.Contains(err.Error(), "do this again") {
		t.Fatalf("Run() = %v while somebody replays, want to be told to do it again", err)
	}
	if got := b.extend(newer); !got.Paused || got.Earlier != 2 {
		t.Errorf("Run() = %+v, want 2 earlier events of a paused consumer", got)
	}
	if a, err := consumers.ReadAccount(t.Context(), b.db, b.js, "EVENTS", "notes"); err != nil || a.Unaccounted != 0 || a.Retrying != 2 {
		t.Errorf("what was handed over is not accounted for: %+v, %v", a, err)
	}
	if _, err := inbox.Resume(t.Context(), b.db, "notes", "bob@host", "back", ""); err != nil {
		t.Fatal(err)
	}
	b.start(newer)
	b.handles(3)
	b.settled()
	if got := b.text(`select string_agg(concat_ws(' ', kind, target, by, detail ->> 'types', detail ->> 'done'), '') from pgjet.operation where kind = 'consumer.extend'`); got != `consumer.extend notes ann@host ["note.kept"] true` {
		t.Errorf("operations are %s", got)
	}
	if again := b.extend(newer); again.Earlier > 0 || again.Paused {
		t.Errorf("Run() = %+v once all is done", again)
	}
}

// TestLeftAlone: differences other than missing types are left for an operator.
func TestLeftAlone(t *testing.T) {
	t.Parallel()
	b := newRig(t)
	newer := b.consumer(false, "note.made", "note.kept")
	want, err := newer.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	lacks := func() []string {
		t.Helper()
		types, err := replay.Lacks(t.Context(), b.js, "EVENTS", want)
		if err != nil {
			t.Fatal(err)
		}
		if result := b.extend(newer); !slices.Equal(result.Types, types) {
			t.Errorf("Run() = %+v, Lacks() = %q", result, types)
		}
		return types
	}
	if got := lacks(); len(got) > 0 {
		t.Errorf("a durable consumer that is not there lacks %q", got)
	}
	for filter, want := range map[string]string{"events.*.note.torn": "", "events.>": "", "": "", "events.*.note.kept": "note.made"} {
		have := jetstream.ConsumerConfig{Durable: "notes", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: filter}
		if _, err := b.js.CreateConsumer(t.Context(), "EVENTS", have); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(lacks(), " "); got != want { // no process ever ran: the inbox is empty
			t.Errorf("with filter %q it lacks %q, want %q", filter, got, want)
		}
		if err := b.js.DeleteConsumer(t.Context(), "EVENTS", "notes"); err != nil {
			t.Fatal(err)
		}
	}
}
