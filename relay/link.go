package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/rivals"
	"github.com/pgjet/pgjet/relay/protocol"
)

// pingInterval is how often a silent NATS server is pinged.
const pingInterval = time.Second

// pings is how many pings may go unanswered before the connection is given up.
const pings = 5

// A link is one connection to the stream: the [protocol.Stream] of a session. It does not
// reconnect: a late publish, flushed after a reconnect, could match a sequence that a
// server gives out again after losing its tail.
type link struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	stream   jetstream.Stream
	name     string
	source   string
	subjects *events.Subjects
	api      string // the prefix of JetStream's API subjects
	metrics  *metrics

	inbox   string
	answers chan reply
	sent    sending
	number  int // of the appends

	closed chan nats.Status // reports that the connection is lost
	hints  chan *nats.Msg
	others *rivals.Others
	owned  atomic.Bool           // the stream names this outbox
	deaf   atomic.Bool           // NATS does not let the relay announce itself, or hear others
	denied atomic.Pointer[error] // why NATS denies a permission
}

// A reply is an answer of the server with the time at which it came.
type reply struct {
	*nats.Msg
	at time.Time
}

// dial connects, and looks up the stream.
func dial(ctx context.Context, r *Relay, here rivals.Presence) (*link, error) {
	l := &link{others: rivals.NewOthers(here), name: r.Stream, source: r.Source, subjects: events.SubjectsOf(r.Prefix), metrics: r.metrics, answers: make(chan reply, 16), hints: make(chan *nats.Msg, 1)}
	options := append([]nats.Option{
		nats.Name("pgjet-relay"), nats.NoReconnect(), nats.ReconnectBufSize(-1),
		nats.Timeout(connectTimeout), nats.FlusherTimeout(answerTimeout),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(pings), nats.SetCustomDialer(&r.nats),
		nats.CustomInboxPrefix("_INBOX_relay"), nats.PermissionErrOnSubscribe(true),
		nats.ErrorHandler(l.noteError),
	}, r.NATS...)
	var err error
	if l.nc, err = nats.Connect(r.NATSURL, options...); err != nil {
		return nil, blockedByStream(err)
	}
	if err := natsconn.CheckVersion(l.nc); err != nil {
		l.close()
		return nil, blockedByStream(err)
	}
	if err := l.open(ctx, r.Domain); err != nil {
		l.close()
		if foreign, is := errors.AsType[*ForeignOutboxError](err); is {
			return nil, foreign
		}
		return nil, l.classify(fmt.Errorf("look up stream %s: %w", l.name, err))
	}
	return l, nil
}

func (l *link) open(ctx context.Context, domain string) error {
	l.closed = l.nc.StatusChanged(nats.CLOSED)
	l.inbox = l.nc.NewInbox()
	_, err := l.nc.Subscribe(l.inbox+".*", func(m *nats.Msg) { l.answers <- reply{m, time.Now()} })
	if err != nil {
		return err
	}
	if _, err := l.nc.ChanSubscribe(events.HintSubject(l.name), l.hints); err != nil {
		return err
	}
	if _, err := l.nc.Subscribe(events.LeadSubject(l.name), l.others.Hear); err != nil {
		return err
	}
	if l.js, err = jetStream(l.nc, domain); err != nil {
		return err
	}
	l.api = natsconn.API(l.js)
	if l.stream, err = l.js.Stream(ctx, l.name); err != nil {
		return err
	}
	return l.checkOwner(l.stream.CachedInfo().Config)
}

// jetStream returns JetStream in that domain, "" for the servers' own.
func jetStream(nc *nats.Conn, domain string) (jetstream.JetStream, error) {
	if domain == "" {
		return jetstream.New(nc)
	}
	return jetstream.NewWithDomain(nc, domain)
}

// noteError records an asynchronous error of NATS. It ignores that the relay may not
// receive hints or hear other relays: it can publish without.
func (l *link) noteError(_ *nats.Conn, _ *nats.Subscription, err error) {
	switch {
	case !errors.Is(err, nats.ErrPermissionViolation), strings.Contains(err.Error(), events.HintSubject(l.name)):
	case strings.Contains(err.Error(), events.LeadSubject(l.name)):
		l.deaf.Store(true)
	default:
		l.denied.Store(&err)
	}
}

// classify adds the cause to an error of this connection.
func (l *link) classify(err error) error {
	if err == nil {
		return nil
	}
	denied := l.denied.Load()
	if denied == nil || causeOf(err) == string(jserror.Permission) {
		return blockedByStream(err)
	}
	if natsconn.Of(err) != jserror.Permission { // other errors have their own text
		err = fmt.Errorf("%w (%w)", *denied, err)
	}
	return block(string(jserror.Permission), advise(err, permissions))
}

func (l *link) close() {
	if l != nil && l.nc != nil {
		l.nc.Close()
	}
}

// lost returns why the connection ended.
func (l *link) lost() error {
	return block("nats_unreachable", fmt.Errorf("connection lost: %w", cmp.Or(l.nc.LastError(), nats.ErrConnectionClosed)))
}

// batches reports whether the stream takes atomic batches.
func (l *link) batches() bool { return l.stream.CachedInfo().Config.AllowAtomicPublish }

// chains reports whether messages may name the id of their predecessor. In a cluster they
// must not: each replica compares the id itself. A replica that was caught up by copying
// finds another id than the leader, and stops for good. A server in no cluster says that it
// leads the stream, and names no cluster.
func (l *link) chains() bool {
	cluster := l.stream.CachedInfo().Cluster
	return cluster == nil || cluster.Name == ""
}

// State implements [protocol.Stream].
func (l *link) State(ctx context.Context) (protocol.State, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	info, err := l.stream.Info(ctx)
	if err != nil {
		return protocol.State{}, l.classify(fmt.Errorf("look up stream %s: %w", l.name, err))
	}
	if err := l.checkOwner(info.Config); err != nil {
		return protocol.State{}, err
	}
	l.metrics.looked(info)
	return protocol.State{
		Created: info.Created.Truncate(time.Microsecond), // PostgreSQL keeps no more
		First:   info.State.FirstSeq, Last: info.State.LastSeq,
	}, nil
}

// Message implements [protocol.Stream]. It asks the leader, since a lagging replica may
// answer a direct get.
func (l *link) Message(ctx context.Context, sequence uint64) (protocol.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	data, err := json.Marshal(map[string]uint64{"seq": sequence})
	if err != nil {
		return protocol.Message{}, err
	}
	msg, err := l.nc.RequestWithContext(ctx, l.api+"STREAM.MSG.GET."+l.name, data)
	if err != nil {
		return protocol.Message{}, l.classify(fmt.Errorf("get message %d: %w", sequence, err))
	}
	var answer struct {
		Message struct {
			Subject string `json:"subject"`
			Header  []byte `json:"hdrs"`
		} `json:"message"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return protocol.Message{}, fmt.Errorf("get message %d: %w", sequence, err)
	}
	if answer.Error != nil && jserror.Of(int(answer.Error.ErrorCode)) == jserror.MessageMissing {
		return protocol.Message{}, protocol.ErrNoMessage
	}
	if answer.Error != nil {
		return protocol.Message{}, fmt.Errorf("get message %d: %w", sequence, refusal(answer.Error))
	}
	header, err := nats.DecodeHeadersMsg(answer.Message.Header)
	if err != nil {
		header = nil
	}
	return message(sequence, answer.Message.Subject, header), nil
}

// message returns the message that a header describes. It is an event of ours if it has an
// id and a seq.
func message(sequence uint64, subject string, header nats.Header) protocol.Message {
	m := protocol.Message{Sequence: sequence, Subject: subject}
	e, err := events.FromMessage(header, nil)
	if err == nil && e.Seq > 0 {
		m.ID, m.Seq, m.Source = e.ID, e.Seq, e.Source
	}
	return m
}

// Check implements [protocol.Stream]: an event must fit the server's largest message, and
// the stream must capture its subject.
func (l *link) Check(e events.Event) error {
	config := l.stream.CachedInfo().Config
	limit := l.nc.MaxPayload()
	if config.MaxMsgSize > 0 {
		limit = min(limit, int64(config.MaxMsgSize))
	}
	const headers = 4 << 10 // more than almost any event has
	if int64(len(e.Data))+headers > limit {
		m := newOutgoing()
		m.carry(e, l.source, l.subjects)
		if size := int64(m.Size()) + 1<<10; size > limit {
			return fmt.Errorf("event with its headers takes %d bytes, the server takes %d", size, limit)
		}
	}
	if slices.Contains(config.Subjects, l.subjects.All()) {
		return nil
	}
	subject := l.subjects.Of(e.Type, e.Key)
	if !slices.ContainsFunc(config.Subjects, func(s string) bool { return matches(s, subject) }) {
		return fmt.Errorf("subject %s is none of the stream's: %s", subject, strings.Join(config.Subjects, " "))
	}
	return nil
}

// matches reports whether pattern, with the wildcards of NATS, matches subject.
func matches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range p {
		switch {
		case token == ">":
			return len(s) > i
		case i >= len(s) || token != "*" && token != s[i]:
			return false
		}
	}
	return len(p) == len(s)
}
