package inbox

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// A RetryGroup is the events that wait for another attempt at a consumer after the same error.
type RetryGroup struct {
	Consumer string    `json:"consumer"`
	Type     string    `json:"type"`
	Count    int64     `json:"count"`
	First    time.Time `json:"first"` // when the first and the last of them began to wait
	Last     time.Time `json:"last"`
	Error    string    `json:"error"` // of the last one, cut to 500 characters
}

// RetryGroups groups events that wait after an error at a consumer, or at all consumers if the name
// is "", the largest group first. It reads at most most events, and reports whether there are more.
func RetryGroups(ctx context.Context, db Reader, consumer string, most int) (groups []RetryGroup, more bool, err error) {
	all, err := collect(ctx, db, pgx.NamedArgs{"consumer": consumer, "most": most + 1}, func(row pgx.CollectableRow) (g RetryGroup, err error) {
		err = row.Scan(&g.Consumer, &g.Type, &g.Error, &g.Last)
		return g, err
	}, `
		select consumer, type, left(coalesce(error, ''), 500), since from pgjet.intent
		 where @consumer::text = '' or consumer = @consumer order by consumer, event_id limit @most`)
	if err != nil {
		return nil, false, wrap("group the events that wait for another attempt", err)
	}
	if more = len(all) > most; more {
		all = all[:most]
	}
	at := make(map[[2]string]int) // places in groups
	for _, one := range all {
		if one.Error == "" { // it waits behind another event of its key
			continue
		}
		key := [2]string{one.Consumer, group(one.Type, one.Error)}
		i, known := at[key]
		if !known {
			i, at[key] = len(groups), len(groups)
			groups = append(groups, RetryGroup{Consumer: one.Consumer, Type: one.Type, First: one.Last.UTC()})
		}
		g := &groups[i]
		g.Count++
		if one.Last.Before(g.First) {
			g.First = one.Last.UTC()
		}
		if !one.Last.Before(g.Last) {
			g.Last, g.Error = one.Last.UTC(), one.Error
		}
	}
	slices.SortStableFunc(groups, func(a, b RetryGroup) int { return cmp.Compare(b.Count, a.Count) })
	return groups, more, nil
}
