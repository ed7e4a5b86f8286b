package console

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/relay"
)

// A relayView is the content of the page Relay.
type relayView struct {
	Relays  []relayPart
	Held    []relay.Quarantined
	Unheld  *failure // why Held is not known
	Missing []operate.Missing
}

// A relayPart is what the page shows of one relay and its stream.
type relayPart struct {
	relayBox
	Troubles []operate.Trouble
	In       *operate.Stream
	Unread   *failure // why the stream is not known
	Unknown  []relay.UnknownMessage
	Listed   int            // the number of all unknown messages
	LastSeq  int64          // of the last unknown message
	Pairs    []operate.Pair // the stream and the outbox, side by side
	Unpaired *failure       // why Pairs is not known
}

func (c *Console) relayPage(ctx context.Context, _ *http.Request) (page, error) {
	p := page{Title: "Relay", Template: "relay.html", Command: "pgjet relay status"}
	s, src := c.board.Status(ctx), c.facts()
	v := relayView{Missing: s.Missing}
	for _, r := range s.Relays {
		part := relayPart{relayBox: boxOf(r), Troubles: operate.RelayTroubles(r)}
		src.Stream = r.Stream
		if in, err := src.ReadStream(ctx); err == nil {
			part.In = &in
		} else if f := failureOf(err); src.JS != nil { // otherwise the page says it once
			part.Unread = &f
		}
		if r.Unknown > 0 {
			var err error
			if part.Unknown, err = relay.UnknownMessages(ctx, c.config.DB, r.Stream); err != nil {
				f := failureOf(err)
				part.Unread = &f
			}
			c.compareHistories(ctx, src, &part)
		}
		v.Relays = append(v.Relays, part)
	}
	var err error
	if v.Held, err = relay.Quarantine(ctx, c.config.DB, "", 0); err != nil {
		f := failureOf(err)
		v.Unheld = &f
	}
	v.Held = v.Held[:min(len(v.Held), pageRows)]
	p.Content = v
	return p, nil
}

// compareHistories adds what both sides hold where a relay halted.
func (c *Console) compareHistories(ctx context.Context, src operate.Source, part *relayPart) {
	part.Listed = len(part.Unknown)
	if part.Listed == 0 {
		return
	}
	part.LastSeq = part.Unknown[part.Listed-1].StreamSeq
	var err error
	if part.Pairs, err = src.Histories(ctx, part.Unknown); err != nil {
		f := failureOf(err)
		part.Unpaired = &f
	}
	part.Unknown = part.Unknown[:min(len(part.Unknown), pageRows)]
}

// adopt accepts for good the messages that were shown, which the stream holds and the outbox does
// not know.
func (c *Console) adopt(ctx context.Context, r *http.Request) (next, notice string, err error) {
	stream := r.PathValue("stream")
	reason, err := why(r, true)
	if err != nil {
		return "", "", err
	}
	last, lastErr := strconv.ParseInt(r.PostFormValue("last"), 10, 64)
	n, countErr := strconv.Atoi(r.PostFormValue("count"))
	switch {
	case lastErr != nil || countErr != nil:
		return "", "", wrongf("the form is not one of this console")
	case r.PostFormValue("typed") != stream:
		return "", "", wrongf("type the name of the stream, %s, to confirm: what is adopted is accepted for good", operate.Plain(stream))
	}
	err = operate.AdoptShown(ctx, c.config.DB, stream, last, n, c.actor(r), reason)
	return "/relay", fmt.Sprintf("Adopted what stream %s holds up to sequence %d. A relay goes on behind it.", stream, last), err
}

func (c *Console) pauseRelay(ctx context.Context, r *http.Request) (next, notice string, err error) {
	stream := r.PathValue("stream")
	reason, err := why(r, true)
	if err != nil {
		return "", "", err
	}
	p, news, err := relay.Pause(ctx, c.config.DB, stream, c.actor(r), reason)
	switch {
	case err != nil:
		return "", "", err
	case !news:
		notice = "The relay of " + stream + " was paused already, by " + p.By + ": " + p.Reason
	default:
		notice = "Paused the relay of " + stream + ". Events wait in the outbox."
	}
	return "/relay", notice, nil
}

func (c *Console) resumeRelay(ctx context.Context, r *http.Request) (next, notice string, err error) {
	stream := r.PathValue("stream")
	reason, err := why(r, false)
	if err != nil {
		return "", "", err
	}
	p, err := relay.Resume(ctx, c.config.DB, stream, c.actor(r), reason)
	switch {
	case err != nil:
		return "", "", err
	case p == nil:
		notice = "The relay of " + stream + " was not paused."
	default:
		notice = "Resumed the relay of " + stream + "."
	}
	return "/relay", notice, nil
}

// decideQuarantined retries or drops an event in quarantine.
func (c *Console) decideQuarantined(ctx context.Context, r *http.Request) (next, notice string, err error) {
	seq, err := strconv.ParseInt(r.PathValue("seq"), 10, 64)
	if err != nil {
		return "", "", wrongf("%q is no seq of an event", operate.Plain(r.PathValue("seq")))
	}
	drop := r.PostFormValue("do") == "drop"
	reason, err := why(r, drop)
	if err != nil {
		return "", "", err
	}
	if drop {
		_, err = relay.DropQuarantined(ctx, c.config.DB, []int64{seq}, c.actor(r), reason)
		return "/relay", "Dropped the event with seq " + strconv.FormatInt(seq, 10) + ": no relay tries it again.", err
	}
	_, err = relay.RetryQuarantined(ctx, c.config.DB, []int64{seq}, c.actor(r), reason)
	return "/relay", "The relay tries the event with seq " + strconv.FormatInt(seq, 10) + " again.", err
}
