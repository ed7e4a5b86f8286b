package backlog_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay/backlog"
)

func TestParseSnapshot(t *testing.T) {
	for _, tt := range []struct {
		text string
		want backlog.Snapshot
	}{
		{"10:20:", backlog.Snapshot{Xmin: 10, Xmax: 20, Running: []uint64{}}},
		{"10:20:10,14,15", backlog.Snapshot{Xmin: 10, Xmax: 20, Running: []uint64{10, 14, 15}}},
		{"18446744073709551614:18446744073709551615:", backlog.Snapshot{Xmin: 1<<64 - 2, Xmax: 1<<64 - 1, Running: []uint64{}}},
	} {
		got, err := backlog.ParseSnapshot(tt.text)
		if err != nil || !cmp.Equal(got, tt.want) {
			t.Errorf("ParseSnapshot(%q) = %v, %v, want %v", tt.text, got, err, tt.want)
		}
		if got.String() != tt.text {
			t.Errorf("String() = %q, want %q", got, tt.text)
		}
	}
	for _, text := range []string{"", "1", "1:2", "1:2:3:4", "a:2:", "1:2:x", "-1:2:", "1:2:3,"} {
		if _, err := backlog.ParseSnapshot(text); err == nil {
			t.Errorf("ParseSnapshot(%q) = nil, want an error", text)
		}
	}
}

// TestSeesAgreesWithPostgreSQL compares Sees with pg_visible_in_snapshot.
func TestSeesAgreesWithPostgreSQL(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	for _, text := range []string{"3:3:", "10:20:10,14,15", "10:16:11"} {
		s, err := backlog.ParseSnapshot(text)
		if err != nil {
			t.Fatal(err)
		}
		for xid := uint64(3); xid < 25; xid++ {
			visible := false
			err := db.QueryRow(t.Context(), `select pg_visible_in_snapshot($1::xid8, $2::text::pg_snapshot)`, xid, text).Scan(&visible)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Sees(xid); got != visible {
				t.Errorf("(%s).Sees(%d) = %t, PostgreSQL says %t", text, xid, got, visible)
			}
		}
	}
	if (backlog.Snapshot{}).Sees(1) {
		t.Error("the zero Snapshot sees a transaction")
	}
}
