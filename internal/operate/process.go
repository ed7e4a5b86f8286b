package operate

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pgjet/pgjet/internal/health"
	"github.com/pgjet/pgjet/internal/registry"
)

// An Instance is a registered process, with its health.
type Instance struct {
	registry.Instance
	Health string `json:"health"`          // ready, degraded, not_ready, no_answer, or unknown if it has no health URL
	Cause  string `json:"cause,omitempty"` // why it is not ready

	Breakers []health.Breaker `json:"breakers,omitempty"` // open breakers

	causes []string // of all its parts that are not ready, as "part: reason"
}

// Instances returns the processes of one service that answer, or of all services if name is empty,
// with their health. It takes about two seconds if a health page does not answer.
func Instances(ctx context.Context, nc *nats.Conn, name string) ([]Instance, error) {
	found, err := registry.Ask(ctx, nc, name)
	if err != nil {
		return nil, err
	}
	all := make([]Instance, len(found))
	var group errgroup.Group
	group.SetLimit(32)
	for n, i := range found {
		group.Go(func() error { all[n] = askHealth(ctx, i); return nil })
	}
	return all, group.Wait()
}

// askHealth asks an instance whether it is ready. Any process may have registered: the request
// carries no credentials, and redirects are not followed.
func askHealth(ctx context.Context, i registry.Instance) Instance {
	if i.HealthURL == "" {
		return Instance{Instance: i, Health: "unknown"}
	}
	client := &http.Client{
		Timeout:       2 * time.Second,
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, i.HealthURL, nil)
	if err != nil {
		return Instance{Instance: i, Health: "no_answer", Cause: err.Error()}
	}
	resp, err := client.Do(req)
	if err != nil {
		return Instance{Instance: i, Health: "no_answer", Cause: err.Error()}
	}
	defer resp.Body.Close()
	causes, degraded, breakers := readHealth(resp.Body)
	found := Instance{Instance: i, Health: "ready", Breakers: breakers}
	switch {
	case resp.StatusCode != http.StatusOK:
		if len(causes) == 0 {
			causes = []string{"it answers " + resp.Status}
		}
		found.Health, found.Cause, found.causes = "not_ready", causes[0], causes
	case degraded != "":
		found.Health, found.Cause = "degraded", degraded
	}
	return found
}

// mostBreakers is the most breakers that are read from one process.
const mostBreakers = 20

// readHealth returns the causes that a health page names, the first degraded part, and the breakers.
func readHealth(page io.Reader) (causes []string, degraded string, breakers []health.Breaker) {
	var report struct {
		Status   string
		Breakers []health.Breaker
		Checks   []struct {
			Name, Cause, Degraded string
			Ready                 bool
		}
	}
	if json.NewDecoder(io.LimitReader(page, 64<<10)).Decode(&report) != nil {
		return nil, "", nil
	}
	for _, c := range report.Checks {
		if !c.Ready {
			causes = append(causes, c.Name+": "+c.Cause)
		}
		if c.Degraded != "" && degraded == "" {
			degraded = c.Name + ": " + c.Degraded
		}
	}
	if len(causes) == 0 && report.Status != "" {
		causes = []string{report.Status}
	}
	return causes, degraded, report.Breakers[:min(len(report.Breakers), mostBreakers)]
}
