package consumers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// Configs returns the durable consumers that c needs, one for each slice: everything from the start of the
// stream, so that it can be replayed; explicit acks; and no limit to deliveries, since
// beyond one JetStream would drop an event in silence. The subjects of the events begin with prefix; "" is [events.Prefix].
func (c Consumer) Configs(prefix string) (all []jetstream.ConsumerConfig, err error) {
	c, err = c.withDefaults()
	if err == nil && prefix != "" {
		err = events.CheckPrefix(prefix)
	}
	if err != nil {
		return nil, err
	}
	subjects := events.SubjectsOf(prefix)
	for n := range c.Slices {
		all = append(all, c.config(subjects, inbox.Slice{Number: n, Of: c.Slices}))
	}
	return all, nil
}

// config returns the durable consumer of a slice; c is complete.
func (c *Consumer) config(of *events.Subjects, slice inbox.Slice) jetstream.ConsumerConfig {
	var subjects []string
	for _, t := range c.Handler.types {
		if slice.Of <= 1 {
			subjects = append(subjects, of.Filter(t))
			continue
		}
		for from, to := slice.Tokens(); from < to; from++ {
			subjects = append(subjects, of.PartitionFilter(from, t))
		}
	}
	slices.Sort(subjects)
	return jetstream.ConsumerConfig{
		Durable:        slice.Durable(c.Name),
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        ackWait,
		MaxDeliver:     -1,
		MaxAckPending:  maxAckPending,
		FilterSubjects: slices.Compact(subjects),
	}
}

// The slices are made of the partitions of subjects.
var _ [inbox.Tokens]struct{} = [events.Partitions]struct{}{}

// maxAckPending is how many events all processes together may hold.
const maxAckPending = 10_000

// Ensure creates the durable consumer want on a stream if it does not exist, and
// reports whether it did. An existing one is left as it is: Ensure returns how it
// differs, a line for each setting. It returns an [*inbox.ForeignDurableError] if that belongs to another database than want. If js may not create one, since the account of its
// connection does not import that request, the error says that the consumer is missing.
func Ensure(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) (created bool, differences []string, err error) {
	consumer, err := js.Consumer(ctx, stream, want.Durable)
	if natsconn.Of(err) == jserror.ConsumerMissing {
		if err := checkStream(ctx, js, stream, want); err != nil {
			return false, nil, err
		}
		_, failed := js.CreateConsumer(ctx, stream, want)
		if errors.Is(failed, nats.ErrNoResponders) {
			return false, nil, err
		}
		if natsconn.Of(failed) != jserror.ConsumerDiffers {
			return failed == nil, nil, failed
		}
		consumer, err = js.Consumer(ctx, stream, want.Durable) // another process was faster
	}
	if err == nil {
		err = foreign(stream, consumer.CachedInfo().Config, want)
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
		h, w := fmt.Sprint(s.have), fmt.Sprint(s.want)
		if h != w {
			if types := fmt.Sprint(wholeFilters(have)); s.name == "filter subjects" && types != fmt.Sprint(wholeFilters(want)) {
				h, w = types, fmt.Sprint(wholeFilters(want)) // of a slice, in all partitions
			}
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

// A durable is the durable consumer of a term.
type durable struct {
	run   *run
	slice inbox.Slice
	want  jetstream.ConsumerConfig
	jetstream.Consumer
	stream      jetstream.Stream
	first, last uint64 // places in the stream, as of the beginning
	next        uint64 // number of the next delivery since the last reset
}

// open looks at the stream, of which the durable consumer is bound: one that is made anew later takes the durable consumer away.
func (d *durable) open(ctx context.Context) (err error) {
	d.stream, err = d.run.js.Stream(ctx, d.run.stream)
	if err != nil {
		return fmt.Errorf("look at the stream: %w", err)
	}
	state := d.stream.CachedInfo().State
	d.first, d.last = state.FirstSeq, state.LastSeq
	return nil
}

// bind looks the durable consumer up, and makes it again if there is none, which it reports. Settings that
// make events vanish are put right. One that wants other events than this one is left alone,
// and is an error.
func (d *durable) bind(ctx context.Context) (created bool, err error) {
	d.want = d.run.Consumer.config(d.run.subjects, d.slice)
	d.want.Metadata = d.run.identity.Named(nil)
	created, differences, err := Ensure(ctx, d.run.js, d.run.stream, d.want)
	if err == nil {
		d.Consumer, err = d.run.js.Consumer(ctx, d.run.stream, d.want.Durable)
	}
	if _, others := errors.AsType[*inbox.ForeignDurableError](err); others {
		return false, err
	}
	if err != nil {
		return false, fmt.Errorf("bind the durable consumer: %w", err)
	}
	if err := d.mend(ctx, differences); err != nil {
		return false, err
	}
	if err := d.unfit(d.CachedInfo()); err != nil {
		return false, err
	}
	if err := d.claim(ctx); err != nil {
		return false, err
	}
	for _, difference := range compare(d.CachedInfo().Config, d.want) {
		d.run.log.WarnContext(ctx, "the durable consumer is not as it should be, nothing was changed", "difference", difference)
	}
	return created, nil
}

// mend puts right what of the durable consumer makes events vanish.
func (d *durable) mend(ctx context.Context, differences []string) error {
	config, needed := mended(d.CachedInfo().Config, d.want)
	if !needed {
		return nil
	}
	var err error
	if d.Consumer, err = d.run.js.UpdateConsumer(ctx, d.run.stream, config); err != nil {
		return fmt.Errorf("consumer_differs: durable consumer %s is not what this process needs: %s; putting it right failed: %w",
			d.want.Durable, strings.Join(differences, "; "), natsconn.Denied(d.run.js.Conn(), err))
	}
	d.run.log.WarnContext(ctx, "somebody changed the durable consumer in a way that makes events vanish, it was put right", "differences", strings.Join(differences, "; "))
	return nil
}

// unfit returns why the durable consumer cannot be worked with as it is.
func (d *durable) unfit(info *jetstream.ConsumerInfo) error {
	if err := foreign(d.run.stream, info.Config, d.want); err != nil {
		return err
	}
	differences := compare(info.Config, d.want)
	for _, difference := range differences {
		name, _, _ := strings.Cut(difference, ":")
		if !slices.Contains(harmless, name) {
			return fmt.Errorf("consumer_differs: durable consumer %s is not what this process needs: %s; nothing was changed; see: pgjet consumer ensure %s",
				d.want.Durable, strings.Join(differences, "; "), d.run.Consumer.Name)
		}
	}
	if info.Paused && info.PauseRemaining > 0 {
		return fmt.Errorf("consumer_paused: durable consumer %s is paused in JetStream for another %s, not by pgjet; to end that: nats consumer resume %s %s",
			d.want.Durable, info.PauseRemaining.Round(time.Second), d.run.stream, d.want.Durable)
	}
	return nil
}

// guard returns, soon after somebody changed, paused, deleted or made again the durable consumer, what
// they did, or nil when ctx ends. The next session says why it cannot begin, or puts it right.
func (d *durable) guard(ctx context.Context, ackFloor *atomic.Uint64) error {
	bound := d.CachedInfo().Created
	for sleep(ctx, guardEvery) {
		info, err := d.look(ctx)
		if err == nil {
			ackFloor.Store(info.AckFloor.Stream) // for the place that is saved when the session ends
		}
		switch class := natsconn.Of(err); {
		case class == jserror.ConsumerMissing, class == jserror.StreamMissing:
			return fmt.Errorf("look at the durable consumer: %w", err)
		case err != nil:
			continue // receiving notices what is wrong with NATS
		case !info.Created.Equal(bound):
			return fmt.Errorf("consumer_differs: durable consumer %s was deleted and made again", d.want.Durable)
		}
		if _, needed := mended(info.Config, d.want); needed {
			return fmt.Errorf("consumer_differs: durable consumer %s was changed: %s", d.want.Durable, strings.Join(compare(info.Config, d.want), "; "))
		}
		if err := d.unfit(info); err != nil {
			return err
		}
	}
	return nil
}

func (d *durable) look(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	consumer, err := d.run.js.Consumer(ctx, d.run.stream, d.want.Durable)
	if err != nil {
		return nil, err
	}
	return consumer.CachedInfo(), nil
}

// holds reports whether the stream holds an event at a place.
func (d *durable) holds(ctx context.Context, id uuid.UUID, seq uint64) bool {
	msg, err := d.stream.GetMsg(ctx, seq)
	return err == nil && msg.Header.Get("ce-id") == id.String()
}

// reset makes JetStream deliver from a place of the stream on. It would accept a place
// beyond the end, and skip what comes there.
func (d *durable) reset(ctx context.Context, from uint64) error {
	from = min(max(from, d.first, 1), d.last+1)
	if _, err := d.run.js.ResetConsumerToSequence(ctx, d.run.stream, d.want.Durable, from); err != nil {
		return fmt.Errorf("reset the durable consumer to %d: %w", from, err)
	}
	d.next = 1
	return nil
}

// place brings the durable consumer and what the inbox knows to the same place of the stream.
func (t *term) place(ctx context.Context, created bool) error {
	info := t.durable.CachedInfo()
	if created && t.at.High > 0 {
		return t.recreated(ctx)
	}
	if err := t.noteLost(ctx, info.AckFloor.Stream); err != nil {
		return err
	}
	t.at.High = max(t.at.High, info.Delivered.Stream)
	if t.ordered() && t.at.Orphaned && info.NumAckPending > 0 {
		t.suspects = info.Delivered.Stream
	}
	// Both places were true once. The stream may have lost its end since, or the
	// database been restored: the lower one is true now.
	from := min(t.at.Floor, info.AckFloor.Stream) + 1
	switch {
	case t.at.Redeliver:
		from = 1
	case t.ordered():
	case !t.cut || info.NumAckPending == 0:
		return nil // others are at work
	default: // what others have in hand comes twice, and is skipped
		from = info.AckFloor.Stream + 1
	}
	if err := t.durable.reset(ctx, from); err != nil {
		return err
	}
	if !t.ordered() {
		t.cut = false // there is one term
	}
	if t.at.Redeliver {
		return t.room.Redelivered(ctx)
	}
	return nil
}

// noteLost notes up to where the inbox may have forgotten events, since the database was restored:
// up to JetStream's ack floor, unless this very inbox has seen that. Then what it does not know
// up to there was never handled: JetStream passed over it, as it does while somebody has changed
// the filters of the durable consumer.
func (t *term) noteLost(ctx context.Context, ackFloor uint64) error {
	seen := &t.inboxes[t.tenure.Slice.Number]
	was := *seen
	*seen = t.tenure.Version
	if ackFloor <= max(t.at.LostUntil, t.at.Floor) || was == *seen {
		return nil
	}
	t.at.LostUntil = ackFloor
	return t.room.Lost(ctx, ackFloor)
}

// recreated moves a durable consumer that was made again to the inbox's position: behind
// the last event that it knows, if the stream still holds that very event there. Else the
// stream lost something, and everything comes again.
func (t *term) recreated(ctx context.Context) error {
	id, seq, err := t.room.LastKnown(ctx, t.at.Floor)
	if err != nil {
		return err
	}
	from := uint64(1)
	if seq > 0 && t.durable.holds(ctx, id, seq) {
		from = seq + 1
	}
	if err := t.durable.reset(ctx, from); err != nil {
		return err
	}
	t.log.WarnContext(ctx, "the durable consumer was missing and was made again, at the inbox's position", "stream_seq", from)
	return nil
}
