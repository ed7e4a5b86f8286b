package main

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
)

func startTestLab(t *testing.T) *lab {
	t.Helper()
	l, err := startLab(t.Context(), options{quick: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.stop(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func newTestSite(t *testing.T, l *lab, on server) *site {
	t.Helper()
	s, err := l.site(t.Context(), on)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// TestWatermillRows: the rows of fill and of the load equal those of Watermill's own
// publishers.
func TestWatermillRows(t *testing.T) {
	l := startTestLab(t)
	for _, w := range []watermillSetting{{}, {Envelope: true}, {Queue: true}} {
		s := newTestSite(t, l, none)
		if err := w.fill(t.Context(), s, 1); err != nil {
			t.Fatal(err)
		}
		all, err := w.outbox(t.Context(), s)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		filled := lastRow(t, s)
		e := newEvent(0, time.Time{})
		e.ID = all[0].ID
		publishByWatermill(t, s, w, e)
		if published := lastRow(t, s); filled != published {
			t.Errorf("%+v: the row\n%s\nis not like that of Watermill\n%s", w, filled, published)
		}
	}
}

// lastRow returns the last row, without the values that differ each time.
func lastRow(t *testing.T, s *site) (row string) {
	t.Helper()
	err := s.db.QueryRow(t.Context(), `
		select jsonb_build_array(payload::jsonb #- '{metadata,ce-time}', metadata::jsonb - 'ce-time', length(uuid))::text
		  from watermill_events_0 order by "offset" desc limit 1`).Scan(&row)
	if err != nil {
		t.Fatal(err)
	}
	return row
}

func publishByWatermill(t *testing.T, s *site, w watermillSetting, e events.Event) {
	t.Helper()
	msg := message.NewMessage(e.ID.String(), message.Payload(e.Data))
	msg.Metadata = peerHeaders(e)
	sql, err := wmsql.NewPublisher(wmsql.BeginnerFromPgx(s.db), wmsql.PublisherConfig{SchemaAdapter: w.schema()}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	topic := w.topics()[0]
	var p message.Publisher = sql
	if w.Envelope {
		p = forwarder.NewPublisher(sql, forwarder.PublisherConfig{ForwarderTopic: topic})
		topic = events.Subject(e.Type, e.Key)
	}
	if err := p.Publish(topic, msg); err != nil {
		t.Fatal(err)
	}
}

// TestDrains: every relay stores each event once, in order, with payloads of one size.
func TestDrains(t *testing.T) {
	l := startTestLab(t)
	const n = 2000
	for _, d := range []drainer{
		pgjetDrainer(), naiveDrainer(),
		watermillDrainer(watermillSetting{Envelope: true, Poll: drainPoll}),
		watermillDrainer(watermillSetting{Poll: drainPoll, Shards: 3, OneConn: true}),
		watermillDrainer(watermillSetting{Poll: drainPoll, Queue: true}),
	} {
		res, err := d.variant(d.kind, lazy, n).run(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range res.values {
			if want := map[string]float64{"drained": n}[v.name]; v.unit == "" && v.v != want {
				t.Errorf("%s: %s is %v, want %v", d.kind, v.name, v.v, want)
			}
		}
	}
}

// TestComparison: events that a stream lacks, repeats, or holds in the wrong order are
// counted.
func TestComparison(t *testing.T) {
	s := newTestSite(t, startTestLab(t), lazy)
	var all []entry
	var stored []events.Event
	for i := range 5 {
		e := newEvent(i*keys, time.Now()) // of one key
		all = append(all, entry{e.ID, e.Key})
		stored = append(stored, e)
	}
	for _, i := range []int{0, 3, 1, 1} {
		subject, _, data := stored[i].Message()
		msg := nats.NewMsg(subject)
		msg.Data = data
		msg.Header["ce-id"] = []string{stored[i].ID.String()}
		if _, err := s.js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	found, err := s.compare(t.Context(), all)
	if want := (comparison{lost: 1, unreached: 1, twice: 1, disordered: 1}); err != nil || found != want {
		t.Errorf("found %+v, %v; want %+v", found, err, want)
	}
}

func TestLoad(t *testing.T) {
	l := startTestLab(t)
	for name, p := range map[string]pipeline{
		"hints": pgjetPipeline(true, false), "consumer": pgjetPipeline(false, true),
		"Watermill": watermillPipeline(watermillQuick),
	} {
		r, err := startFlow(t.Context(), newTestSite(t, l, lazy), p, 500)
		if err != nil {
			t.Fatal(name, err)
		}
		f, err := r.measure(t.Context(), 500, 500)
		r.stop()
		if err != nil || len(f.ms) != 500 || f.missing != 0 || f.twice != 0 || f.due[0] <= 0 {
			t.Errorf("%s: %d arrived, %d are missing, %d came twice, %v", name, len(f.ms), f.missing, f.twice, err)
		}
	}
}

func TestDelivered(t *testing.T) {
	ms := func(all ...int64) []int64 {
		for i := range all {
			all[i] *= 1e6
		}
		return all
	}
	times := ms(1, 9, 12, 20, 40)
	if n, gap := delivered(times, 10e6, 30e6); n != 2 || gap != 10 {
		t.Errorf("%d delivered, gap %v ms; want 2 and 10", n, gap)
	}
	if n, gap := delivered(times, 50e6, 60e6); n != 0 || gap != 10 {
		t.Errorf("%d delivered, gap %v ms; want 0 and 10", n, gap)
	}
}
