package producer

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/postgres"
)

// Numbers of users on a page.
const (
	defaultLimit = 50
	maxLimit     = 200
)

// A page selects users: at most limit, from behind after on. The greatest id stands before
// all others.
type page struct {
	after uuid.UUID
	limit int
}

type listUsersInput struct {
	Limit number `query:"limit" doc:"How many users, at most."`
	After string `query:"after" maxLength:"27" doc:"Where to go on: next of the page before."`

	page page
}

// Resolve reads the query strictly.
func (in *listUsersInput) Resolve(ctx huma.Context) []error {
	u := ctx.URL()
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return []error{newProblem(http.StatusBadRequest, "query_invalid", "The part of the address after the ? cannot be read.")}
	}
	in.page, err = readPage(query)
	if err != nil {
		return []error{err}
	}
	return nil
}

// A number is a whole number in a query, as it was sent.
type number string

// Schema describes the numbers that readPage accepts.
func (number) Schema(huma.Registry) *huma.Schema {
	least, most := 1.0, float64(maxLimit)
	return &huma.Schema{Type: huma.TypeInteger, Minimum: &least, Maximum: &most, Default: defaultLimit}
}

func readPage(query url.Values) (page, error) {
	p := page{uuid.Max, defaultLimit}
	if given := query["limit"]; given != nil {
		n, err := strconv.ParseUint(given[0], 10, 16)
		if err != nil || n < 1 || n > maxLimit || len(given) > 1 {
			return page{}, fieldProblem(http.StatusBadRequest, FieldError{
				"limit", "limit_invalid", fmt.Sprintf("The limit must be one number from 1 to %d.", maxLimit),
			})
		}
		p.limit = int(n)
	}
	if given := query["after"]; given != nil {
		id, ok := readCursor(given[0])
		if !ok || len(given) > 1 {
			return page{}, fieldProblem(http.StatusBadRequest, FieldError{
				"after", "cursor_invalid", "This is no next of a page before. Start again without after.",
			})
		}
		p.after = id
	}
	return p, nil
}

// cursor returns the cursor behind the user with this id: the id and a check sum of it. The
// sum finds mistakes. It is no secret, and need not be: an admin who invents a cursor gets
// users that they may list anyway.
func cursor(id uuid.UUID) string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(id[:], crc32.ChecksumIEEE(id[:])))
}

// readCursor accepts what cursor returns, and nothing else.
func readCursor(c string) (uuid.UUID, bool) {
	if len(c) != base64.RawURLEncoding.EncodedLen(len(uuid.UUID{})+crc32.Size) {
		return uuid.Nil, false
	}
	b, err := base64.RawURLEncoding.DecodeString(c)
	if err != nil || len(b) < len(uuid.UUID{}) {
		return uuid.Nil, false
	}
	id := uuid.UUID(b[:len(uuid.UUID{})])
	if cursor(id) != c { // the same bytes in another spelling
		return uuid.Nil, false
	}
	return id, true
}

// A userList is one page of users, the newest first.
type userList struct {
	Users []User `json:"users" nullable:"false"`
	Next  string `json:"next,omitempty" doc:"The after of the next page. Without it, this page is the last."`
}

type listUsersOutput struct {
	Link string `header:"Link" doc:"The address of the next page, rel=next."`
	Body userList
}

func (s *Server) listUsers(ctx context.Context, in *listUsersInput) (*listUsersOutput, error) {
	if err := s.mayActOn(ctx, everybody); err != nil {
		return nil, err
	}
	key := fmt.Sprint(in.page.limit, " ", in.page.after)
	list, err := cached(ctx, s.cache, listRead, key, func(ctx context.Context) (userList, error) { return s.userPage(ctx, in.page) })
	if err != nil {
		return nil, err
	}
	out := &listUsersOutput{Body: list}
	if list.Next != "" {
		out.Link = fmt.Sprintf(`</users?after=%s&limit=%d>; rel="next"`, list.Next, in.page.limit)
	}
	return out, nil
}

// userPage returns a page of users. Each page begins behind the last user of the one
// before, even if that user has been deleted: sign-ups and deletions in between neither
// repeat nor hide anyone else.
func (s *Server) userPage(ctx context.Context, p page) (userList, error) {
	users, err := postgres.Collect(ctx, s.db.DB, pgx.RowToStructByName[User], `
		select `+userColumns+` from users.users
		 where id < $1 order by id desc limit $2`, p.after, p.limit+1) // one more than limit shows whether there is a next page
	if err != nil {
		return userList{}, fmt.Errorf("list users: %w", err)
	}
	for i := range users {
		users[i].CreatedAt = users[i].CreatedAt.UTC()
	}
	if len(users) <= p.limit {
		return userList{Users: users}, nil
	}
	users = users[:p.limit]
	return userList{users, cursor(users[p.limit-1].ID)}, nil
}
