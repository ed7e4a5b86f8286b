package inbox

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// A Recorded is what processes recorded about a consumer when they began to run it.
type Recorded struct {
	Stream  string
	Prefix  string // of the subjects of events; "" if it is not recorded
	Ordered bool
	Slices  int
	// Types are those of the events that it handles, or patterns of them. They are those of the
	// process that began last, of the living ones if there are any. Empty: an older version ran it,
	// which did not record them.
	Types []string
}

// ReadRecorded returns what is recorded about a consumer. It returns an [UnknownError] if no
// consumer of that name has ever run.
func ReadRecorded(ctx context.Context, db Reader, consumer string) (is Recorded, err error) {
	err = db.QueryRow(ctx, `
		select stream, coalesce(prefix, ''), ordered, slices, coalesce((
		       select types from pgjet.process where consumer = c.name and types is not null
		          and seen_at between clock_timestamp() - interval '15 s' and clock_timestamp() + interval '15 s'
		        order by since desc limit 1), types, '{}')
		  from pgjet.consumer c where name = $1`, consumer).Scan(&is.Stream, &is.Prefix, &is.Ordered, &is.Slices, &is.Types)
	if errors.Is(err, pgx.ErrNoRows) {
		err = known(ctx, db, consumer)
	}
	return is, failed("look up consumer "+consumer, err)
}
