package console

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/relay"
)

// An overview is the content of the page Now.
type overview struct {
	operate.Status
	Sentence string
	Alerts   []alert // that need an operator
	Mild     []alert // that need no one
	Relays   []relayBox
	Boxes    []consumerBox
	Flow     flow
}

// An alert is a finding and the page about it.
type alert struct {
	operate.Finding
	Link string
}

// A relayBox is a relay in the picture.
type relayBox struct {
	relay.Status
	State string
	Why   string
}

// A consumerBox is a consumer in the picture.
type consumerBox struct {
	status.Status
	Empty string // the time until its lag is handled; "" if unknown, or if there is no lag
}

func (c *Console) nowPage(ctx context.Context, _ *http.Request) (page, error) {
	s := c.board.Status(ctx)
	o := overview{Status: s, Sentence: sentence(s), Flow: c.board.flow()}
	for _, f := range s.Findings {
		if f.Healthy {
			o.Mild = append(o.Mild, alert{f, linkOf(f)})
		} else {
			o.Alerts = append(o.Alerts, alert{f, linkOf(f)})
		}
	}
	for _, r := range s.Relays {
		o.Relays = append(o.Relays, boxOf(r))
	}
	for _, one := range s.Consumers {
		o.Boxes = append(o.Boxes, consumerBox{one, emptyIn(one)})
	}
	return page{Title: "Now", Template: "now.html", Command: "pgjet status", Content: o}, nil
}

// sentence summarizes the status.
func sentence(s operate.Status) string {
	switch {
	case !s.Healthy:
		return strings.ToUpper(s.Verdict()[:1]) + s.Verdict()[1:] + "."
	case len(s.Missing) > 0:
		return "Nothing that is known needs you."
	}
	return "Everything moves. Nothing needs you."
}

// linkOf returns the page about a finding.
func linkOf(f operate.Finding) string {
	kind, name, _ := strings.Cut(f.What, " ")
	switch kind {
	case "consumer":
		if f.Code == "dead_letters" {
			return "/dead" + query("consumer", name)
		}
		if f.Code == "retrying" {
			return "/retrying" + query("consumer", name)
		}
		return "/consumers/" + url.PathEscape(name)
	case "relay", "outbox":
		return "/relay"
	case "saga":
		return "/sagas"
	case "process", "service":
		return "/processes"
	}
	return "/processes"
}

func boxOf(r relay.Status) relayBox {
	box := relayBox{Status: r, State: "moving"}
	if troubles := operate.RelayTroubles(r); len(troubles) > 0 {
		box.State, box.Why = troubles[0].Cause, troubles[0].Why
	} else if r.Pending.Events == 0 {
		box.State = "idle"
	}
	return box
}

// emptyIn formats the time until a consumer has handled its lag.
func emptyIn(s status.Status) string {
	gains := s.Rate - s.Arrivals
	if s.Lag == 0 || gains <= 0 {
		return ""
	}
	return lasts(secondsOf(float64(s.Lag) / gains))
}
