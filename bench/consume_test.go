package main

import "testing"

// TestConsumption: whatever the handlers do, each event has one effect, and those that are
// meant to fail have failed once.
func TestConsumption(t *testing.T) {
	l := startTestLab(t)
	const n = 400
	for name, tt := range map[string]struct {
		consumption
		failed int
	}{
		"ordered":     {consumption{Form: "ordered", Events: n}, 0},
		"alone":       {consumption{Form: "ordered", Events: n, Group: 1}, 0},
		"batches":     {consumption{Form: "batch", Events: n}, 0},
		"some fail":   {consumption{Form: "ordered", Events: n, Failing: 50}, n / 50},
		"a key fails": {consumption{Form: "ordered", Events: n, OneKey: true, From: n/2 + 1, Failing: n/2 + 1}, 1},
		"waits":       {consumption{Form: "ordered", Events: n, Waiting: true}, 0},
		"effect":      {consumption{Form: "effect", Events: n, Waiting: true}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestSite(t, l, lazy)
			if err := s.fillConsume(t.Context(), tt.consumption); err != nil {
				t.Fatal(err)
			}
			res, err := s.consumed(t.Context(), tt.consumption)
			if err != nil || res.values[0].v <= 0 {
				t.Fatal(res, err)
			}
			if got := groups(t, s); tt.Group == 1 && got != n || tt.Group == 0 && tt.Form == "ordered" && got >= n {
				t.Errorf("%d events were handled in %d transactions", n, got)
			}
			var failed, most int
			err = s.db.QueryRow(t.Context(), `
				select count(*), coalesce(max(n), 0)
				  from (select count(*) as n from pgjet.attempt where outcome = 'retried' group by event_id) as of_event`).Scan(&failed, &most)
			if err != nil || failed != tt.failed || most > 1 {
				t.Errorf("%d events failed, one of them %d times, %v; want %d, each once", failed, most, err, tt.failed)
			}
		})
	}
}

// groups returns how many transactions recorded events as done.
func groups(t *testing.T, s *site) (n int) {
	t.Helper()
	err := s.db.QueryRow(t.Context(), `select count(distinct xmin::text) from pgjet.inbox where state = 'done'`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCounter: an event counts once, and none before the first that counts.
func TestCounter(t *testing.T) {
	c := newCounter(consumption{Events: 10, From: 4})
	for _, number := range []int64{3, 4, 4, 10} {
		c.handled(number)
	}
	if got := c.done.Load(); got != 2 || c.of != 7 {
		t.Errorf("%d of %d are handled, want 2 of 7", got, c.of)
	}
}
