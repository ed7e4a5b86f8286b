package producer

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/failsafe-go/failsafe-go/adaptivelimiter"
)

const (
	// leastAdmitted is how many requests of an operation may run at a time, however slow
	// they have become: a burst after a calm night is no overload.
	leastAdmitted = 20
	// admissionWait is how long a request waits for others to end. A client that waits
	// longer would be served sooner if it asked again.
	admissionWait = 250 * time.Millisecond
	// maxArriving is how many request bodies of an operation may be arriving at a time.
	// Each takes memory, for as long as its client takes to send it.
	maxArriving = 512
)

var (
	// errOverloaded says that too many requests are running.
	errOverloaded = errors.New("too many requests at a time")
	// errArriving says that too many bodies are arriving.
	errArriving = errors.New("too many bodies arrive at a time")
)

// An admission bounds how many requests of one operation run at a time. It raises the bound
// while requests take as long as they used to, and lowers it when they take longer. As many
// more may wait for a moment, but none in an overload: each would wait for all before it,
// only to be refused after its body was read.
//
// Each operation has its own admission. Its requests take about the same time, so slower
// means busier, and sign-ups do not keep anyone from reading.
//
// Only this type uses failsafe-go, whose API is not yet stable.
type admission struct {
	operation string
	current   atomic.Pointer[limiter]
	line      gate // its slots are the limit of current
	arriving  *gate
	gates     []func() *gate // gates that its requests have to pass, as they are now
}

// turnsAway reports whether a request that arrives now would be turned away later.
func (a *admission) turnsAway() bool {
	if a.line.turnsAway() {
		if len(a.gates) > 0 {
			a.gates[0]().miss() // before the first one no work is spent on a request
		}
		return true
	}
	return slices.ContainsFunc(a.gates, func(g func() *gate) bool { return g().turnsAway() })
}

type limiter struct {
	adaptivelimiter.AdaptiveLimiter[any]
	most int
}

// tune sets the upper bound. The current bound starts over.
func (a *admission) tune(most int) {
	if old := a.current.Load(); old != nil && old.most == most {
		return
	}
	least := uint(min(leastAdmitted, most))
	a.current.Store(&limiter{most: most, AdaptiveLimiter: adaptivelimiter.NewBuilder[any]().
		WithLimits(least, uint(most), least).
		WithMaxLimitStabilizationWindow(10 * time.Second).
		WithBaselineWindow(100). // seconds, about: a bad minute must not become the baseline
		Build()})
	a.resize()
}

// resize applies the current limit.
func (a *admission) resize() {
	limit := a.current.Load().Limit()
	a.line.resize(limit, limit)
}

// shed answers r if there is no room for it anyway, and reports whether it did. It comes
// before everything else, even traces: a slow refusal keeps others from being answered.
func (s *Server) shed(w http.ResponseWriter, r *http.Request) bool {
	pattern := r.Method + " " + r.URL.Path
	a, ok := s.admissions[pattern]
	if !ok {
		_, pattern = s.mux.Handler(r)
		a, ok = s.admissions[pattern]
	}
	if !ok || !a.turnsAway() {
		return false
	}
	s.secure(w.Header(), r)
	_ = s.refusal(r.Context(), errOverloaded) // counts it
	overloaded.write(w)
	return true
}

// overloaded is the answer to requests that are shed. They are many, so it is made once.
var overloaded = newReadyAnswer(overloadProblem())

// A readyAnswer is a problem that is written often.
type readyAnswer struct {
	status int
	header http.Header
	body   []byte
}

func newReadyAnswer(p *Problem) readyAnswer {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and an int
	}
	header := p.GetHeaders()
	header.Set("Content-Type", p.ContentType(""))
	header.Set("Content-Length", strconv.Itoa(len(body)))
	return readyAnswer{p.Status, header, body}
}

func (a readyAnswer) write(w http.ResponseWriter) {
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client may be gone
}

type arrivedKey struct{}

// receive refuses a request if too many bodies are arriving. A request whose body has
// arrived no longer counts: see arrived. From then on enter bounds it.
func (s *Server) receive(a *admission) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		if ctx.Operation().RequestBody == nil {
			next(ctx)
			return
		}
		leave, err := a.arriving.enter(ctx.Context(), 0)
		if err != nil {
			_, w := humago.Unwrap(ctx)
			writeProblem(w, s.refusal(ctx.Context(), errArriving))
			return
		}
		defer leave() // if the body never came
		next(huma.WithValue(ctx, arrivedKey{}, leave))
	}
}

// arrived records that the body of ctx's request has come, if it has one.
func arrived(ctx context.Context) {
	if leave, ok := ctx.Value(arrivedKey{}).(func()); ok {
		leave()
	}
}

// enter returns once the request may go on. Call leave at its end; if usual is set, its
// time counts as the time that requests take. enter returns [errOverloaded] if there are
// too many requests, and ctx's error if ctx is cancelled.
func (a *admission) enter(ctx context.Context) (leave func(usual bool), err error) {
	out, err := a.line.enter(ctx, admissionWait)
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, errOverloaded
	}
	permit, ok := a.current.Load().TryAcquirePermit()
	if !ok { // the limit has just been lowered
		out()
		return nil, errOverloaded
	}
	return func(usual bool) {
		if usual {
			permit.Record()
		} else {
			permit.Drop()
		}
		a.resize()
		out()
	}, nil
}

// admission returns a new admission for op, under the tuning.
func (s *Server) admission(op huma.Operation) *admission {
	a := &admission{operation: op.OperationID, arriving: newGate(maxArriving, 0), gates: s.gates[op.OperationID]}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.tune(s.tuning.Load().Requests)
	s.admissions[op.Method+" "+op.Path] = a
	return a
}
