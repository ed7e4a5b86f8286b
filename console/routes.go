package console

import (
	"context"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"github.com/pgjet/pgjet/internal/operate"
)

// routes returns the pages and the changes.
func (c *Console) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /assets/", c.assets())
	mux.Handle("GET /{$}", c.show("now", c.nowPage))
	mux.Handle("GET /find", http.HandlerFunc(c.find))
	mux.Handle("GET /events", c.show("events", c.eventsPage))
	mux.Handle("GET /events/{id}", c.show("events", c.eventPage))
	mux.Handle("GET /consumers", c.show("consumers", c.consumersPage))
	mux.Handle("GET /consumers/{name}", c.show("consumers", c.consumerPage))
	mux.Handle("GET /consumers/{name}/replay", c.show("consumers", c.replayPage))
	mux.Handle("GET /dead", c.show("dead", c.deadPage))
	mux.Handle("GET /dead/plan", c.show("dead", c.planPage))
	mux.Handle("GET /dead/{id}", http.HandlerFunc(c.letter))
	mux.Handle("GET /changes/{id}", c.show("dead", c.workPage))
	mux.Handle("GET /keys", c.show("keys", c.keyPage))
	mux.Handle("GET /retrying", c.show("retrying", c.retryingPage))
	mux.Handle("GET /relay", c.show("relay", c.relayPage))
	mux.Handle("GET /scheduled", c.show("scheduled", c.scheduledPage))
	mux.Handle("GET /sagas", c.show("sagas", c.sagasPage))
	mux.Handle("GET /operations", c.show("operations", c.operationsPage))
	mux.Handle("GET /operations/{id}", c.show("operations", c.operationPage))
	mux.Handle("GET /audit", c.show("audit", c.auditPage))
	mux.Handle("GET /audit/runs/{id}", c.show("audit", c.auditRunPage))
	mux.Handle("GET /processes", c.show("processes", c.processesPage))
	mux.Handle("GET /types", c.show("types", c.typesPage))
	mux.Handle("GET /types/{type}", c.show("types", c.typePage))
	mux.Handle("GET /reasons", c.show("", c.reasonsPage))
	mux.Handle("GET /reasons/{code}", c.show("", c.reasonsPage))
	mux.Handle("POST /events/{id}/reveal", c.show("events", c.revealPage))
	c.leadBack(mux, "POST /events/{id}/reveal")
	c.change(mux, "POST /dead/run", func(r operate.Rights) bool { return r.Dead }, c.runPlan)
	c.change(mux, "POST /consumers/{name}/pause", func(r operate.Rights) bool { return r.Consumers }, c.pauseConsumer)
	c.change(mux, "POST /consumers/{name}/resume", func(r operate.Rights) bool { return r.Consumers }, c.resumeConsumer)
	c.change(mux, "POST /consumers/{name}/replay", func(r operate.Rights) bool { return r.Dead && r.Consumers }, c.runReplay)
	c.change(mux, "POST /retry", func(r operate.Rights) bool { return r.Retry }, c.retry)
	c.change(mux, "POST /relay/{stream}/pause", func(r operate.Rights) bool { return r.Relays }, c.pauseRelay)
	c.change(mux, "POST /relay/{stream}/resume", func(r operate.Rights) bool { return r.Relays }, c.resumeRelay)
	c.change(mux, "POST /relay/{stream}/adopt", func(r operate.Rights) bool { return r.Adopt }, c.adopt)
	c.change(mux, "POST /quarantine/{seq}", func(r operate.Rights) bool { return r.Quarantine }, c.decideQuarantined)
	c.change(mux, "POST /scheduled/{id}", func(r operate.Rights) bool { return r.Scheduled }, c.decideScheduled)
	c.change(mux, "POST /sagas/{id}/retry", func(r operate.Rights) bool { return r.Sagas }, c.retrySaga)
	c.change(mux, "POST /operations/{id}/cancel", func(r operate.Rights) bool { return r.Operations }, c.cancelOperation)
	c.change(mux, "POST /operations/{id}/resume", func(r operate.Rights) bool { return r.Dead }, c.resumeOperation)
	c.change(mux, "POST /operations/{id}/run", func(r operate.Rights) bool { return r.Republish }, c.runOperation)
	c.change(mux, "POST /audit/{stream}", operate.Rights.Any, c.beginAudit)
	for _, other := range c.others { // its path without the last slash
		mux.Handle("GET "+strings.TrimPrefix(other.config.Path, c.config.Path), http.RedirectHandler(other.config.Path+"/", http.StatusSeeOther))
	}
	if c.config.Dev != nil {
		anybody := func(operate.Rights) bool { return !c.config.ReadOnly }
		mux.Handle("GET /lab", c.show("lab", c.labPage))
		c.change(mux, "POST /lab/{id}", anybody, c.setSwitch)
		c.change(mux, "POST /sign-up", anybody, c.signUp)
	}
	mux.Handle("GET /", c.show("", func(context.Context, *http.Request) (page, error) {
		return page{Title: "Not found"}, &operate.NotFoundError{What: "this address", Looked: "the console has no such page"}
	}))
	return mux
}

// change adds a route that changes something, and the right that it needs. do returns the path of
// the next page and a notice for it.
func (c *Console) change(mux *http.ServeMux, pattern string, may func(operate.Rights) bool, do func(context.Context, *http.Request) (next, notice string, err error)) {
	c.leadBack(mux, pattern)
	mux.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, mostBodies)
		ctx, cancel := context.WithTimeout(r.Context(), pageTime)
		defer cancel()
		refused := func(_ context.Context, _ *http.Request) (page, error) {
			return page{Title: "Refused", Template: "problem.html", Status: http.StatusForbidden, Still: true, Content: failure{
				Code: "refused", Text: "This console may not do that. It may change what the database lets its user change; see the role pgjet_operator.",
			}}, nil
		}
		if !may(c.board.Rights(ctx)) {
			c.show("", refused)(w, r)
			return
		}
		next, notice, err := do(ctx, r)
		if err != nil {
			c.show("", func(context.Context, *http.Request) (page, error) {
				return page{Title: "Nothing was changed", Still: true}, err
			})(w, r)
			return
		}
		c.changed()
		if notice != "" {
			c.leaveNotice(w, r, notice)
		}
		http.Redirect(w, r, c.config.Path+next, http.StatusSeeOther)
	}))
}

// assets serves styles and scripts, which a browser may keep for a while.
func (c *Console) assets() http.Handler {
	web, err := fs.Sub(files, "web")
	if err != nil {
		panic(err) // it is embedded
	}
	serve := http.StripPrefix("/assets/", http.FileServerFS(web))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") || strings.HasSuffix(r.URL.Path, ".html") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "private, max-age=300")
		serve.ServeHTTP(w, r)
	})
}

// actor returns the user who makes a change.
func (c *Console) actor(r *http.Request) string {
	const most = 200
	who := strings.TrimSpace(operate.Plain(c.config.User(r)))
	return strings.ToValidUTF8(who[:min(len(who), most)], "")
}

// back returns the page to go on with: the path in the form, or fallback.
func back(r *http.Request, fallback string) string {
	if to := r.PostFormValue("back"); local(to) {
		return to
	}
	return fallback
}

// leadBack adds the route from the address of a change to the page about what it changes.
func (c *Console) leadBack(mux *http.ServeMux, pattern string) {
	if pattern == "POST /consumers/{name}/replay" {
		return // a page has this address
	}
	mux.HandleFunc(strings.Replace(pattern, "POST", "GET", 1), func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, c.config.Path+after(pattern, r), http.StatusSeeOther)
	})
}

// local reports whether a path of a form leads to this server.
func local(to string) bool {
	u, err := url.Parse(to)
	return err == nil && strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "//") && !strings.Contains(to, `\`) && u.Host == ""
}

// after returns the page about what the change of a pattern such as POST /consumers/{name}/pause
// changes. A browser asks for it by the address of the change, if somebody loads the answer again
// or shares its address.
func after(pattern string, r *http.Request) string {
	part := strings.Split(strings.TrimPrefix(pattern, "POST /"), "/")
	switch part[0] {
	case "consumers":
		return "/consumers/" + url.PathEscape(r.PathValue("name"))
	case "events", "operations":
		return "/" + part[0] + "/" + url.PathEscape(r.PathValue("id"))
	case "retry":
		return "/retrying"
	case "quarantine":
		return "/relay"
	case "sign-up":
		return "/lab"
	}
	return "/" + part[0]
}
