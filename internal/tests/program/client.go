package program

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Client makes a connection for each request, and waits ten seconds for an answer.
var Client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Request sends a request, and returns status, header and body of the answer. If there is none, the
// status is 0 and the body is the error.
func Request(t testing.TB, method, url, body string, header map[string]string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	resp, err := Client.Do(req)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, err.Error()
	}
	return resp.StatusCode, resp.Header, string(b)
}

// Get returns status and body of the answer to a GET request, as [Request] does.
func Get(t testing.TB, url string) (int, string) {
	t.Helper()
	status, _, body := Request(t, http.MethodGet, url, "", nil)
	return status, body
}

// Local returns the address of a port on the loopback interface.
func Local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// OpenDB returns a pool that is closed before its process or server is stopped.
func OpenDB(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	db, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// Query returns the one value that sql selects. It fails the test if there is not exactly one row.
func Query[T any](t testing.TB, db *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	rows, err := db.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// Checkpoint returns the last sequence of the stream that the newest checkpoint covers, 0 if there is
// no checkpoint.
func Checkpoint(t *testing.T, db *pgxpool.Pool) int64 {
	t.Helper()
	return Query[int64](t, db, `select coalesce(max(stream_seq), 0) from pgjet.checkpoint`)
}
