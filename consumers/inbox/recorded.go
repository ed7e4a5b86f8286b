package inbox

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// A Recorded is what processes said of a consumer when they began to run it.
type Recorded struct {
	Stream  string
	Prefix  string // of the subjects of events; "" if it is not recorded
	Ordered bool
	Slices  int
	// Types are those of the events that it handles, or patterns of them, as the process says which began last of those that live; else
	// the last that began. None: an older version ran it, which did not say.
	Types []string
}

// ReadRecorded returns what is recorded of a consumer. It returns an [UnknownError] if none of that name has ever run.
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
