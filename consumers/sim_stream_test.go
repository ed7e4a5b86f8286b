package consumers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/internal/delivery"
	"github.com/pgjet/pgjet/events"
)

// A simStream is a model of a stream of JetStream and its durable consumers, as far as needed.
type simStream struct {
	w        *simWorld
	created  time.Time
	log      []*simMessage // from sequence 1 on
	durables map[string]*simDurable
	away     bool
}

type simMessage struct {
	event   events.Event
	subject string
	header  nats.Header
	data    []byte
	at      time.Time
}

type simDurable struct {
	config   jetstream.ConsumerConfig
	created  time.Time
	from, to int // tokens
	number   uint64
	last     uint64 // sequence
	pending  map[uint64]*simPending
	times    map[uint64]int // number of deliveries
}

type simPending struct {
	due time.Time // when it is delivered again
}

func newSimStream(w *simWorld) *simStream {
	return &simStream{w: w, created: time.Now(), durables: make(map[string]*simDurable)}
}

func (s *simStream) end() uint64 { return uint64(len(s.log)) }

func (s *simStream) at(seq uint64) *simMessage {
	if seq == 0 || seq > s.end() {
		return nil
	}
	return s.log[seq-1]
}

func (s *simStream) store(m *simMessage) {
	c := *m
	c.at = time.Now()
	s.log = append(s.log, &c)
}

// lose removes the messages after a sequence. The publisher notices, and publishes them again, in
// the order of the outbox: late commits were behind others before.
func (s *simStream) lose(last uint64) {
	lost := slices.Clone(s.log[last:])
	s.log = s.log[:last]
	for _, d := range s.durables {
		d.last = min(d.last, last)
		maps.DeleteFunc(d.pending, func(seq uint64, _ *simPending) bool { return seq > last })
		maps.DeleteFunc(d.times, func(seq uint64, _ int) bool { return seq > last })
	}
	s.publish(lost)
}

// recreate creates the stream again; the publisher publishes all events again.
func (s *simStream) recreate() {
	s.created = time.Now()
	clear(s.durables)
	all := s.log
	s.log = nil
	s.publish(all)
}

// publish stores events in another order; those of each key keep theirs.
func (s *simStream) publish(all []*simMessage) {
	keys := make(map[string][]*simMessage)
	order := make([]string, len(all))
	for n, m := range all {
		order[n] = m.event.Key
		keys[m.event.Key] = append(keys[m.event.Key], m)
	}
	s.w.r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, key := range order {
		s.store(keys[key][0])
		keys[key] = keys[key][1:]
	}
}

func (d *simDurable) floor() uint64 {
	floor := d.last
	for seq := range d.pending {
		floor = min(floor, seq-1)
	}
	return floor
}

func (d *simDurable) wants(m *simMessage) bool {
	token := events.Partition(m.subject)
	return token >= d.from && token < d.to
}

func (d *simDurable) reset(from uint64) {
	d.number, d.last = 0, from-1
	clear(d.pending)
	clear(d.times)
}

func (s *simStream) info(d *simDurable) *jetstream.ConsumerInfo {
	info := &jetstream.ConsumerInfo{Created: d.created, Config: d.config, NumAckPending: len(d.pending)}
	info.Delivered.Consumer, info.Delivered.Stream, info.AckFloor.Stream = d.number, d.last, d.floor()
	for seq := d.last + 1; seq <= s.end(); seq++ {
		if d.wants(s.at(seq)) {
			info.NumPending++
		}
	}
	return info
}

// deliver returns some messages: first redeliveries, in any order.
func (s *simStream) deliver(d *simDurable, most int) (all []*nats.Msg) {
	var again []uint64
	for _, seq := range slices.Sorted(maps.Keys(d.pending)) {
		if !d.pending[seq].due.After(time.Now()) {
			again = append(again, seq)
		}
	}
	s.w.r.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
	for len(all) < most {
		var seq uint64
		if len(again) > 0 {
			s.w.fire("redelivered")
			seq, again = again[0], again[1:]
		} else {
			for d.last < s.end() {
				d.last++
				if d.wants(s.at(d.last)) {
					seq = d.last
					break
				}
			}
		}
		if seq == 0 {
			return all
		}
		m := s.at(seq)
		d.number++
		d.times[seq]++
		d.pending[seq] = &simPending{time.Now().Add(d.config.AckWait)}
		times := d.times[seq]
		s.w.trace("%s delivers %d: %s", d.config.Durable, seq, s.w.at(m.event.ID))
		if s.w.mutant("suspects are handled") {
			times = 1
		}
		all = append(all, &nats.Msg{Subject: m.subject, Header: m.header, Data: m.data, Sub: simSubscription,
			Reply: fmt.Sprintf("$JS.ACK.EVENTS.%s.%d.%d.%d.%d.0", d.config.Durable, times, seq, d.number, m.at.UnixNano())})
	}
	return all
}

var simSubscription = &nats.Subscription{}

// acked handles an ack when it arrives.
func (s *simStream) acked(durable string, seq uint64) {
	if d := s.durables[durable]; d != nil {
		delete(d.pending, seq)
		delete(d.times, seq)
	}
}

// A simJetStream is the JetStream of a process.
type simJetStream struct {
	jetstream.JetStream
	p *process
}

func (j *simJetStream) Conn() *nats.Conn { return &nats.Conn{} }

// ask runs fn as a request to JetStream.
func (j *simJetStream) ask(ctx context.Context, what string, fn func(s *simStream) error) error {
	return j.p.request(ctx, what, func() error { return fn(j.p.w.stream) })
}

func (j *simJetStream) Stream(ctx context.Context, _ string) (jetstream.Stream, error) {
	s := &simStreamHandle{j: j}
	_, err := s.Info(ctx)
	return s, err
}

type simStreamHandle struct {
	jetstream.Stream
	j    *simJetStream
	info jetstream.StreamInfo
}

func (h *simStreamHandle) CachedInfo() *jetstream.StreamInfo { return &h.info }

func (h *simStreamHandle) Info(ctx context.Context, _ ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	err := h.j.ask(ctx, "stream info", func(s *simStream) error {
		h.info = jetstream.StreamInfo{Created: s.created}
		if s.w.mutant("a new stream counts as the old one") {
			h.info.Created = time.Unix(1, 0)
		}
		h.info.State.FirstSeq, h.info.State.LastSeq = 1, s.end()
		h.info.State.Subjects = map[string]uint64{"all": s.end()}
		return nil
	})
	return &h.info, err
}

func (h *simStreamHandle) GetMsg(ctx context.Context, seq uint64, _ ...jetstream.GetMsgOpt) (raw *jetstream.RawStreamMsg, err error) {
	err = h.j.ask(ctx, "get a message", func(s *simStream) error {
		m := s.at(seq)
		if m == nil || s.w.blind() {
			return jetstream.ErrMsgNotFound
		}
		raw = &jetstream.RawStreamMsg{Subject: m.subject, Header: m.header, Data: m.data, Sequence: seq, Time: m.at}
		return nil
	})
	return raw, err
}

type simConsumerHandle struct {
	jetstream.Consumer
	j    *simJetStream
	name string
	info *jetstream.ConsumerInfo
}

func (h *simConsumerHandle) CachedInfo() *jetstream.ConsumerInfo { return h.info }

func (h *simConsumerHandle) Info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	err := h.j.ask(ctx, "consumer info", func(s *simStream) error {
		d := s.durables[h.name]
		if d == nil {
			return jetstream.ErrConsumerNotFound
		}
		h.info = s.info(d)
		return nil
	})
	return h.info, err
}

func (j *simJetStream) Consumer(ctx context.Context, _, name string) (jetstream.Consumer, error) {
	h := &simConsumerHandle{j: j, name: name}
	_, err := h.Info(ctx)
	return h, err
}

func (j *simJetStream) CreateConsumer(ctx context.Context, stream string, config jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	err := j.ask(ctx, "create a consumer", func(s *simStream) error {
		if s.durables[config.Durable] != nil {
			return nil
		}
		d := &simDurable{config: config, created: time.Now(), from: 0, to: events.Partitions, pending: make(map[uint64]*simPending), times: make(map[uint64]int)}
		if n := len(config.FilterSubjects); n > 1 || events.Filter(simType) != config.FilterSubjects[0] {
			d.from = events.Partition(config.FilterSubjects[0])
			d.to = d.from + n
		}
		s.durables[config.Durable] = d
		return nil
	})
	if err != nil {
		return nil, err
	}
	return j.Consumer(ctx, stream, config.Durable)
}

func (j *simJetStream) ResetConsumerToSequence(ctx context.Context, _, name string, seq uint64) (*jetstream.ConsumerResetResponse, error) {
	return nil, j.ask(ctx, "reset a consumer", func(s *simStream) error {
		d := s.durables[name]
		if d == nil {
			return jetstream.ErrConsumerNotFound
		}
		s.w.fire("durable consumer is reset")
		s.w.trace("%s resets %s to %d", j.p.name, name, seq)
		d.reset(seq)
		return nil
	})
}

func (j *simJetStream) DeleteConsumer(ctx context.Context, _, name string) error {
	return j.ask(ctx, "delete a consumer", func(s *simStream) error {
		delete(s.durables, name)
		return nil
	})
}

// A simSource is the other part of a process's NATS.
type simSource struct{ p *process }

func (s simSource) Check() error { return nil }

func (s simSource) Lost() (<-chan nats.Status, func()) {
	w := s.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	lost := make(chan nats.Status, 1)
	s.p.lost[lost] = true
	return lost, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(s.p.lost, lost)
	}
}

func (s simSource) Pull(_, durable string, _ int) (delivery.Receiver, error) {
	return &simReceiver{p: s.p, durable: durable}, nil
}

// answer sends the answer to a message. It arrives some time later, or never.
func (s simSource) answer(msg *nats.Msg, do func(durable string, seq uint64)) error {
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	if err := s.p.step(context.Background()); err != nil {
		return err
	}
	w := s.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.happens("ack is lost", 10) || w.stream.away {
		w.fire("ack is lost")
		return nil
	}
	time.AfterFunc(w.latency(), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		do(meta.Consumer, meta.Sequence.Stream)
	})
	return nil
}

func (s simSource) Ack(msg *nats.Msg) error {
	s.p.w.acknowledges(msg)
	return s.answer(msg, s.p.w.stream.acked)
}

func (s simSource) again(msg *nats.Msg, after time.Duration) error {
	return s.answer(msg, func(durable string, seq uint64) {
		if d := s.p.w.stream.durables[durable]; d != nil && d.pending[seq] != nil {
			d.pending[seq].due = time.Now().Add(after)
		}
	})
}

func (s simSource) Nak(msg *nats.Msg, delay time.Duration) error { return s.again(msg, delay) }
func (s simSource) InProgress(msg *nats.Msg) error               { return s.again(msg, ackWait) }

// acknowledges checks that an acknowledged message has an inbox row, or had one.
func (w *simWorld) acknowledges(msg *nats.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, err := delivery.Read(msg)
	if err != nil {
		w.breaks("acknowledged is what is no message: %v", err)
		return
	}
	id := uuid.MustParse(msg.Header.Get("ce-id"))
	place := m.SequenceID("EVENTS")
	_, known := w.db.inbox[id]
	_, copied := w.db.inbox[place]
	if !known && !copied && !w.vanished[id] && !w.vanished[place] {
		w.breaks("event %s is acknowledged and the inbox does not have it", id)
	}
}

// A simReceiver requests messages from a durable consumer.
type simReceiver struct {
	p       *process
	durable string
	owed    int
}

func (r *simReceiver) Ask(n, _ int) error {
	r.owed = n
	return r.p.step(context.Background())
}

func (r *simReceiver) Close() {}

func (r *simReceiver) Receive(ctx context.Context, accept func([]*nats.Msg) error) error {
	w := r.p.w
	for ends := time.Now().Add(delivery.RequestTime); r.owed > 0 && ctx.Err() == nil && time.Now().Before(ends); {
		var chunk []*nats.Msg
		err := r.p.request(ctx, "receive", func() error {
			d := w.stream.durables[r.durable]
			if d == nil {
				return jetstream.ErrConsumerDeleted
			}
			chunk = w.stream.deliver(d, min(r.owed, 1+w.r.IntN(6)))
			r.owed -= len(chunk)
			chunk = slices.DeleteFunc(chunk, func(*nats.Msg) bool {
				lost := w.happens("delivery is lost", 30)
				if lost {
					w.fire("delivery is lost")
					if w.mutant("gaps are not noticed") {
						d.number--
					}
				}
				return lost
			})
			return nil
		})
		switch {
		case errors.Is(err, errCut): // the request is lost
			return jetstream.ErrNoHeartbeat
		case err != nil:
			return err
		case len(chunk) == 0:
			sleep(ctx, 60*time.Millisecond)
			continue
		}
		err = accept(chunk)
		if w.mutant("ack before the commit") {
			for _, msg := range chunk {
				_ = simSource{r.p}.Ack(msg)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
