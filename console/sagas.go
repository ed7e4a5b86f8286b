package console

import (
	"context"
	"net/http"
	"slices"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A sagaList is the content of the page Sagas.
type sagaList struct {
	Sagas   []saga.Record
	Waiting []saga.Waiting
	Filter  saga.Filter
	States  []string
	More    bool
}

func (c *Console) sagasPage(ctx context.Context, r *http.Request) (page, error) {
	q := r.URL.Query()
	l := sagaList{Filter: saga.Filter{State: q.Get("state"), Key: q.Get("key")}, States: saga.States}
	p := page{Title: "Sagas", Template: "sagas.html", Command: "pgjet saga ls" + flags("state", l.Filter.State, "key", l.Filter.Key)}
	if l.Filter.State != "" && !slices.Contains(saga.States, l.Filter.State) {
		return p, wrongf("there is no state %q of sagas", operate.Plain(l.Filter.State))
	}
	var err error
	if l.Sagas, err = saga.List(ctx, c.config.DB, l.Filter); err != nil {
		return p, sqlstate.Wrap("list sagas", err)
	}
	l.More = len(l.Sagas) >= saga.Page
	for i := range l.Sagas {
		l.Sagas[i].Error = inbox.Mask(l.Sagas[i].Error)
	}
	if l.Waiting, err = saga.FindWaiting(ctx, c.config.DB); err != nil {
		return p, sqlstate.Wrap("look where sagas wait", err)
	}
	p.Content = l
	return p, nil
}

// retrySaga makes a saga go on undoing.
func (c *Console) retrySaga(ctx context.Context, r *http.Request) (next, notice string, err error) {
	id, err := uuid.Parse(r.PathValue("id"))
	if err != nil {
		return "", "", wrongf("%q is no id of a saga", operate.Plain(r.PathValue("id")))
	}
	reason, err := why(r, true)
	if err != nil {
		return "", "", err
	}
	return "/sagas", "The saga " + id.String() + " goes on undoing.", saga.Retry(ctx, c.config.DB, id, c.actor(r), reason)
}
