package consumers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// Config returns the durable consumer that c needs: everything from the start of the
// stream, so that it can be replayed; explicit acks; and no limit to deliveries, since
// beyond one JetStream would drop an event in silence.
func (c Consumer) Config() (jetstream.ConsumerConfig, error) {
	c, err := c.withDefaults()
	if err != nil {
		return jetstream.ConsumerConfig{}, err
	}
	var subjects []string
	for _, t := range c.Types {
		subjects = append(subjects, events.Filter(t))
	}
	slices.Sort(subjects)
	return jetstream.ConsumerConfig{
		Durable:        c.Name,
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        ackWait,
		MaxDeliver:     -1,
		MaxAckPending:  maxAckPending,
		FilterSubjects: slices.Compact(subjects),
	}, nil
}

// maxAckPending is how many events all processes together may hold.
const maxAckPending = 10_000

// Ensure creates the durable consumer want on a stream if it does not exist, and
// reports whether it did. An existing one is left as it is: Ensure returns how it
// differs, a line for each setting. If js may not create one, since the account of its
// connection does not import that request, the error says that the consumer is missing.
func Ensure(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) (created bool, differences []string, err error) {
	consumer, err := js.Consumer(ctx, stream, want.Durable)
	if natsconn.Of(err) == jserror.ConsumerMissing {
		_, failed := js.CreateConsumer(ctx, stream, want)
		if errors.Is(failed, nats.ErrNoResponders) {
			return false, nil, err
		}
		if natsconn.Of(failed) != jserror.ConsumerDiffers {
			return failed == nil, nil, failed
		}
		consumer, err = js.Consumer(ctx, stream, want.Durable) // another process was faster
	}
	if err != nil {
		return false, nil, err
	}
	return false, compare(consumer.CachedInfo().Config, want), nil
}

// compare returns what makes have unfit for want.
func compare(have, want jetstream.ConsumerConfig) (differences []string) {
	for _, s := range []struct {
		name       string
		have, want any
	}{
		{"filter subjects", filters(have), filters(want)},
		{"deliver policy", have.DeliverPolicy, want.DeliverPolicy},
		{"ack policy", have.AckPolicy, want.AckPolicy},
		{"ack wait", have.AckWait, want.AckWait},
		{"max deliver", have.MaxDeliver, want.MaxDeliver},
		{"max ack pending", have.MaxAckPending, want.MaxAckPending},
		{"back-off", have.BackOff, want.BackOff},
		{"deliver subject", have.DeliverSubject, want.DeliverSubject},
		{"headers only", have.HeadersOnly, want.HeadersOnly},
		{"inactive threshold", have.InactiveThreshold, want.InactiveThreshold},
		{"replay policy", have.ReplayPolicy, want.ReplayPolicy},
		{"max request batch", have.MaxRequestBatch, want.MaxRequestBatch},
		{"max request expires", have.MaxRequestExpires, want.MaxRequestExpires},
		{"max request max bytes", have.MaxRequestMaxBytes, want.MaxRequestMaxBytes},
		{"priority groups", have.PriorityGroups, want.PriorityGroups},
	} {
		if h, w := fmt.Sprint(s.have), fmt.Sprint(s.want); h != w {
			differences = append(differences, fmt.Sprintf("%s: is %s, should be %s", s.name, h, w))
		}
	}
	return differences
}

// mended returns have with what makes events vanish or come again and again put right, and
// whether that changed anything. No version of pgjet sets these otherwise.
func mended(have, want jetstream.ConsumerConfig) (jetstream.ConsumerConfig, bool) {
	changed := have.MaxDeliver != want.MaxDeliver || len(have.BackOff) > 0 || have.InactiveThreshold != want.InactiveThreshold || have.AckWait < want.AckWait
	have.MaxDeliver, have.BackOff, have.InactiveThreshold = want.MaxDeliver, want.BackOff, want.InactiveThreshold
	have.AckWait = max(have.AckWait, want.AckWait)
	if have.FilterSubject != "" { // in the form that needs no other permission
		have.FilterSubject, have.FilterSubjects = "", []string{have.FilterSubject}
	}
	return have, changed
}

// harmless are the settings with which a consumer works though they differ.
var harmless = []string{"ack wait", "max ack pending"}

func filters(c jetstream.ConsumerConfig) []string {
	all := slices.Clone(c.FilterSubjects)
	if c.FilterSubject != "" {
		all = append(all, c.FilterSubject)
	}
	slices.Sort(all)
	return all
}

// stream returns when the stream was created.
func (t *term) stream(ctx context.Context) (created time.Time, err error) {
	s, err := t.JS.Stream(ctx, t.Stream)
	if err != nil {
		return created, fmt.Errorf("look at the stream: %w", err)
	}
	info := s.CachedInfo()
	t.first, t.last = info.State.FirstSeq, info.State.LastSeq
	return info.Created, t.remembers(info.Config.MaxAge)
}

// remembers refuses an inbox that forgets an event while the stream can still deliver it.
func (r *Runner) remembers(maxAge time.Duration) error {
	if r.Retention == 0 || maxAge > 0 && r.Retention >= maxAge+deadRetention {
		return nil
	}
	age := "unlimited"
	if maxAge > 0 {
		age = maxAge.String()
	}
	return fmt.Errorf("retention_too_short: inbox retention %s < stream max age %s + %s for dead letters: an event that comes again would be handled again; raise the one, lower the other, or keep the inbox for ever with 0",
		r.Retention, age, deadRetention)
}

// bind looks the durable consumer up, and makes it again if there is none. Settings that
// make events vanish are put right. One that wants other events than this one is left alone,
// and is an error.
func (t *term) bind(ctx context.Context) error {
	want, err := t.Consumer.Config()
	if err != nil {
		return err
	}
	created, differences, err := Ensure(ctx, t.JS, t.Stream, want)
	if err != nil {
		return fmt.Errorf("bind the durable consumer: %w", err)
	}
	if t.consumer, err = t.JS.Consumer(ctx, t.Stream, t.Consumer.Name); err != nil {
		return fmt.Errorf("bind the durable consumer: %w", err)
	}
	if err := t.mend(ctx, want, differences); err != nil {
		return err
	}
	if err := t.unfit(t.consumer.CachedInfo(), want); err != nil {
		return err
	}
	for _, d := range compare(t.consumer.CachedInfo().Config, want) {
		t.Log.WarnContext(ctx, "the durable consumer is not as it should be, nothing was changed", "difference", d)
	}
	info := t.consumer.CachedInfo()
	if created && t.place.high > 0 {
		return t.recreated(ctx)
	}
	if err := t.noteLost(ctx, info.AckFloor.Stream); err != nil {
		return err
	}
	t.place.high = max(t.place.high, info.Delivered.Stream)
	if !t.ordered() && !t.redeliver {
		return nil
	}
	if t.ordered() && t.place.orphaned && info.NumAckPending > 0 {
		t.suspects = info.Delivered.Stream
	}
	// Both places were true once. The stream may have lost its end since, or the
	// database been restored: the lower one is true now.
	from := min(t.place.floor, info.AckFloor.Stream) + 1
	if t.redeliver {
		from = 1
	}
	err = t.reset(ctx, from)
	t.redeliver = t.redeliver && err != nil
	return err
}

// noteLost notes up to where the inbox may have forgotten events, since the database was restored:
// up to JetStream's ack floor, unless this very inbox has seen that. Then what it does not know
// up to there was never handled: JetStream passed over it, as it does while somebody has changed
// the filters of the durable consumer.
func (t *term) noteLost(ctx context.Context, ackFloor uint64) error {
	now := inboxState{began: t.serverBegan}
	err := t.conn.QueryRow(ctx, `select coalesce(pg_relation_filenode('pgjet.inbox'), 0)`).Scan(&now.file)
	if err != nil {
		return &databaseError{"look at the inbox", err}
	}
	was := t.inbox
	t.inbox = now
	if ackFloor <= max(t.place.lostUntil, t.place.floor) || was == now {
		return nil
	}
	t.place.lostUntil = ackFloor
	return t.saveLost(ctx)
}

// mend puts right what of the durable consumer makes events vanish.
func (t *term) mend(ctx context.Context, want jetstream.ConsumerConfig, differences []string) error {
	config, needed := mended(t.consumer.CachedInfo().Config, want)
	if !needed {
		return nil
	}
	var err error
	if t.consumer, err = t.JS.UpdateConsumer(ctx, t.Stream, config); err != nil {
		return fmt.Errorf("consumer_differs: durable consumer %s is not what this process needs: %s; putting it right failed: %w",
			t.Consumer.Name, strings.Join(differences, "; "), natsconn.Denied(t.JS.Conn(), err))
	}
	t.Log.WarnContext(ctx, "somebody changed the durable consumer in a way that makes events vanish, it was put right", "differences", strings.Join(differences, "; "))
	return nil
}

// unfit returns why a durable consumer cannot be worked with as it is.
func (t *term) unfit(info *jetstream.ConsumerInfo, want jetstream.ConsumerConfig) error {
	differences := compare(info.Config, want)
	for _, d := range differences {
		name, _, _ := strings.Cut(d, ":")
		if !slices.Contains(harmless, name) {
			return fmt.Errorf("consumer_differs: durable consumer %s is not what this process needs: %s; nothing was changed; see: pgjet consumer ensure %s",
				t.Consumer.Name, strings.Join(differences, "; "), t.Consumer.Name)
		}
	}
	if info.Paused && info.PauseRemaining > 0 {
		return fmt.Errorf("consumer_paused: durable consumer %s is paused in JetStream for another %s, not by pgjet; to end that: nats consumer resume %s %s",
			t.Consumer.Name, info.PauseRemaining.Round(time.Second), t.Stream, t.Consumer.Name)
	}
	return nil
}

// guard ends the session soon after somebody changed, paused, deleted or made again the
// durable consumer. The next session says why it cannot begin, or puts it right.
func (t *term) guard(ctx context.Context) {
	want, err := t.Consumer.Config()
	if err != nil {
		return // it was checked before
	}
	bound := t.consumer.CachedInfo().Created
	for t.sleep(ctx, guardEvery) {
		info, err := t.lookAtConsumer(ctx)
		if err == nil {
			t.ackFloor.Store(info.AckFloor.Stream) // for the place that is saved when the session ends
		}
		switch class := natsconn.Of(err); {
		case class == jserror.ConsumerMissing, class == jserror.StreamMissing:
			t.fail(fmt.Errorf("look at the durable consumer: %w", err))
		case err != nil:
			continue // receiving notices what is wrong with NATS
		case !info.Created.Equal(bound):
			t.fail(fmt.Errorf("consumer_differs: durable consumer %s was deleted and made again", t.Consumer.Name))
		default:
			if _, needed := mended(info.Config, want); needed {
				err = fmt.Errorf("consumer_differs: durable consumer %s was changed: %s", t.Consumer.Name, strings.Join(compare(info.Config, want), "; "))
			} else {
				err = t.unfit(info, want)
			}
			if err != nil {
				t.fail(err)
			}
		}
	}
}

func (t *term) lookAtConsumer(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	consumer, err := t.JS.Consumer(ctx, t.Stream, t.Consumer.Name)
	if err != nil {
		return nil, err
	}
	return consumer.CachedInfo(), nil
}

// saveLost writes down what was delivered before, since after a reset JetStream does not
// tell it any more.
func (t *term) saveLost(ctx context.Context) error {
	_, err := t.conn.Exec(ctx, `update pgjet.consumer set lost_until = greatest(lost_until, $2) where name = $1`,
		t.Consumer.Name, int64(t.place.lostUntil))
	if err != nil {
		return &databaseError{"write down what was delivered", err}
	}
	return nil
}

// recreated moves a durable consumer that was made again to the inbox's position: behind
// the last event that it knows, if the stream still holds that very event there. Else the
// stream lost something, and everything comes again.
func (t *term) recreated(ctx context.Context) error {
	id, seq, err := t.lastKnown(ctx)
	if err != nil {
		return &databaseError{"look for the inbox's position", err}
	}
	from := uint64(1)
	if seq > 0 && t.holds(ctx, id, seq) {
		from = seq + 1
	} else if err := t.reset(ctx, from); err != nil {
		return err
	}
	t.Log.WarnContext(ctx, "the durable consumer was missing and was made again, at the inbox's position", "stream_seq", from)
	return nil
}

// lastKnown returns the last event up to the floor that the inbox has, and its place.
func (t *term) lastKnown(ctx context.Context) (id uuid.UUID, seq uint64, err error) {
	const window = 10_000 // places that may hold events for others
	err = t.conn.QueryRow(ctx, `
		select event_id, stream_seq from pgjet.inbox
		 where consumer = $1 and generation = $2 and stream_seq between $3 and $4
		 order by stream_seq desc limit 1`,
		t.Consumer.Name, t.place.generation, max(1, int64(t.place.floor)-window), int64(t.place.floor)).Scan(&id, &seq)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return id, seq, err
}

// holds moves the durable consumer to a place of the stream, and reports whether the
// event there is the expected one; then it is acknowledged.
func (t *term) holds(ctx context.Context, id uuid.UUID, seq uint64) bool {
	if seq < t.first || seq > t.last || t.reset(ctx, seq) != nil {
		return false
	}
	msg, err := t.consumer.Next(jetstream.FetchMaxWait(pingTime))
	if err != nil {
		return false
	}
	t.next++
	meta, err := msg.Metadata()
	return err == nil && meta.Sequence.Stream == seq && msg.Headers().Get("ce-id") == id.String() && msg.DoubleAck(ctx) == nil
}

// reset makes JetStream deliver from a place of the stream on. It would accept a place
// beyond the end, and skip what comes there.
func (t *term) reset(ctx context.Context, from uint64) error {
	from = min(max(from, t.first, 1), t.last+1)
	if _, err := t.JS.ResetConsumerToSequence(ctx, t.Stream, t.Consumer.Name, from); err != nil {
		return fmt.Errorf("reset the durable consumer to %d: %w", from, err)
	}
	t.next = 1
	return nil
}
