package inbox

import (
	"context"
	"fmt"
	"maps"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/rivals"
)

// ForeignDurable is the reason of a consumer whose durable consumer belongs to another database.
const ForeignDurable = "foreign_durable"

// OutboxCopied is the reason of a consumer that stopped because a consumer of the same name in a
// copy of its database, or in the original, goes first.
const OutboxCopied = rivals.Copied

// The metadata of a durable consumer that names the database to which it belongs.
const (
	identityKey = "pgjet.inbox"
	databaseKey = "pgjet.database"
)

// An Identity is the database that has the inbox of a consumer. The durable consumers of the
// consumer belong to that database: if two databases shared one, each event would reach only one of
// them.
type Identity struct {
	ID       uuid.UUID // of pgjet.identity, which dumps, backups and copies share; uuid.Nil if unknown
	Database string    // the name of the database, for people
}

func (i Identity) String() string {
	return fmt.Sprintf("database %q with the identity %s", i.Database, i.ID)
}

// ReadIdentity returns the identity of a database.
func ReadIdentity(ctx context.Context, db Reader) (i Identity, err error) {
	if i.ID, err = postgres.Identity(ctx, db); err == nil {
		err = db.QueryRow(ctx, `select current_database()`).Scan(&i.Database)
	}
	return i, failed("read which database this is", err)
}

// IdentityIn returns the database that the metadata of a durable consumer names; its ID is [uuid.Nil] if it names none.
func IdentityIn(metadata map[string]string) Identity {
	id, err := uuid.Parse(metadata[identityKey])
	if err != nil {
		return Identity{}
	}
	return Identity{id, metadata[databaseKey]}
}

// Named returns a copy of metadata that names i as well.
func (i Identity) Named(metadata map[string]string) map[string]string {
	named := maps.Clone(metadata)
	if named == nil {
		named = make(map[string]string)
	}
	named[identityKey], named[databaseKey] = i.ID.String(), i.Database
	return named
}

// Check returns a [*ForeignDurableError] if the metadata of a durable consumer names another database than i.
func (i Identity) Check(stream, durable string, metadata map[string]string) error {
	if owner := IdentityIn(metadata); owner.ID != uuid.Nil && owner.ID != i.ID {
		return &ForeignDurableError{Stream: stream, Durable: durable, Owner: owner, Own: i}
	}
	return nil
}

// A ForeignDurableError says that a durable consumer belongs to another database.
type ForeignDurableError struct {
	Stream, Durable string
	Owner, Own      Identity
}

// Error names both databases, and says what to do without harm to the other one.
func (e *ForeignDurableError) Error() string {
	return fmt.Sprintf("%s: durable consumer %s of stream %s belongs to %s; this is %s; nothing was changed; "+
		"give the consumer of this database another name, or another stream by --stream and --prefix; to see whose it is: nats consumer info %s %s",
		ForeignDurable, e.Durable, e.Stream, e.Owner, e.Own, e.Stream, e.Durable)
}
