package producer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/postgres"
)

// bareKey matches a key: visible ASCII, without separators and quotes.
var bareKey = regexp.MustCompile(`^[!#-+\--:<-\[\]-~]{1,255}$`)

// idempotencyKey returns the key in the lines of an Idempotency-Key header, "" if
// there are none. The draft of the IETF wants a string in double quotes; many clients
// send it bare. Both forms are the same key.
func idempotencyKey(lines []string) (string, *Problem) {
	if len(lines) == 0 {
		return "", nil
	}
	key := lines[0]
	if quoted := len(key) > 1 && key[0] == '"' && key[len(key)-1] == '"'; quoted {
		key = key[1 : len(key)-1]
	}
	if len(lines) > 1 || !bareKey.MatchString(key) {
		return "", newProblem(http.StatusBadRequest, "idempotency_key_invalid",
			"The Idempotency-Key must be one string of 1 to 255 visible ASCII characters, such as a UUID.")
	}
	return key, nil
}

// errAnswered says that another request with this key has been answered meanwhile.
var errAnswered = errors.New("a request with this Idempotency-Key has been answered")

// signUpOnce is signUp for a request that has a key. If a request with this key succeeded
// within a day, it returns that answer, and replayed is "true".
func (s *Server) signUpOnce(ctx context.Context, n newUser, key string) (u User, replayed string, err error) {
	// A key costs this process one hash at a time, however often it is repeated.
	if _, taken := s.inFlight.LoadOrStore(key, nil); taken {
		return User{}, "", requestInFlight()
	}
	defer s.inFlight.Delete(key)
	for {
		a, err := s.findAnswer(ctx, key)
		if err == nil {
			u, err := s.replay(ctx, a, n)
			return u, "true", err
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return User{}, "", fmt.Errorf("find answer: %w", err)
		}
		u, err := s.signUp(ctx, n, key)
		if !errors.Is(err, errAnswered) {
			return u, "", err
		}
	}
}

func requestInFlight() *Problem {
	p := newProblem(http.StatusConflict, "request_in_flight",
		"A request with this Idempotency-Key is being answered. Try again for its answer.")
	p.retryAfter = 1
	return p
}

// An earlierAnswer identifies an earlier sign-up, and holds the parts of its answer that a
// repetition does not contain.
type earlierAnswer struct {
	Fingerprint []byte
	Password    string // argon2id hash
	ID          uuid.UUID
	CreatedAt   time.Time
}

// findAnswer returns the answer that is kept under key, or [pgx.ErrNoRows].
func (s *Server) findAnswer(ctx context.Context, key string) (earlierAnswer, error) {
	return postgres.CollectOne(ctx, s.db.DB, pgx.RowToStructByName[earlierAnswer], `
		select i.fingerprint, left(i.password, 1024) as password, u.id, `+createdAt("u.created_at")+`
		  from users.idempotency i join users.users u on u.id = i.user_id
		 where i.key = $1 and i.created_at > now() - interval '24 hours'`, key)
}

// replay returns the user as the first answer showed them, if n is the sign-up that a
// answered.
func (s *Server) replay(ctx context.Context, a earlierAnswer, n newUser) (User, error) {
	same := bytes.Equal(a.Fingerprint, fingerprint(n))
	if same {
		var err error
		if same, _, err = s.hasher.verify(ctx, n.Password, a.Password); err != nil {
			return User{}, fmt.Errorf("compare with the first request: %w", err)
		}
	}
	if !same {
		return User{}, newProblem(http.StatusUnprocessableEntity, "idempotency_mismatch",
			"Another request had this Idempotency-Key. Use a new key for each sign-up.")
	}
	return newlySignedUp(a.ID, n, a.CreatedAt.UTC()), nil
}

// fingerprint identifies a sign-up by everything except its password. A fast hash of a
// password would be a way around the slow one.
func fingerprint(n newUser) []byte {
	sum := sha256.Sum256([]byte(strings.Join([]string{n.Email, n.Name}, "\x00")))
	return sum[:]
}

// claim begins a transaction, the only one that may sign up with key until it ends, even if
// its client or its connection is gone by then. If another transaction holds the key, claim
// returns a problem; if another one has signed up, [errAnswered].
func (s *Server) claim(ctx context.Context, key string) (pgx.Tx, error) {
	free, answered := false, false
	tx, err := s.db.beginWith(ctx, func(b *pgx.Batch) {
		b.Queue(`
		select pg_try_advisory_xact_lock(hashtextextended('users.idempotency.' || $1, 0))`, key).
			QueryRow(func(row pgx.Row) error { return row.Scan(&free) })
		// A statement of its own, to see what the previous holder of the lock committed.
		b.Queue(`
		select exists (select from users.idempotency
		                where key = $1 and created_at > now() - interval '24 hours')`, key).
			QueryRow(func(row pgx.Row) error { return row.Scan(&answered) })
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("claim key: %w", err)
	case !free:
		err = requestInFlight()
	case answered:
		err = errAnswered
	default:
		return tx, nil
	}
	_ = tx.Rollback(ctx)
	return nil, err
}

// keepAnswer queues statements that keep the answer to n under key and delete a few old
// answers. They delete more than are added, so that old answers become fewer, and few
// enough to cost little time. They do not wait for a row that another transaction is
// deleting.
func keepAnswer(b *pgx.Batch, key string, n newUser, id uuid.UUID, hash string) {
	b.Queue(`
		insert into users.idempotency (key, fingerprint, password, user_id) values ($1, $2, $3, $4)
		on conflict (key) do update set
		   (fingerprint, password, user_id, created_at) =
		   (excluded.fingerprint, excluded.password, excluded.user_id, excluded.created_at)`,
		key, fingerprint(n), hash, id)
	b.Queue(`
		delete from users.idempotency where key in (
		   select key from users.idempotency where created_at <= now() - interval '24 hours'
		    order by created_at limit 10 for update skip locked)`)
}
