package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// The matrix runs the main path, from sign-ups to mails, in one environment after the other: see
// [walk]. Without PGJET_MATRIX it runs the short rows only; make matrix runs all.
var wholeMatrix = os.Getenv("PGJET_MATRIX") != ""

// A matrixRow is one environment.
type matrixRow struct {
	name  string
	short bool // runs with all tests
	run   func(m *trial)
}

// A trial is a run of one row. It is a test that records differences for the table.
type trial struct {
	*testing.T
	name    string
	checked string // what the row checked
	begun   time.Time

	signUps, published, mails int
	copies                    int // mails of a killed mailer that came again with the same Message-ID
	duplicates                int // messages with the id of another, and mails beyond one for each event
	disorder                  int // messages that came before an older one of their key

	mu      sync.Mutex
	skipped string
	differs []string
	seconds float64
}

func (m *trial) Errorf(format string, args ...any) {
	m.Helper()
	m.note(fmt.Sprintf(format, args...))
	m.T.Errorf(format, args...)
}

func (m *trial) Error(args ...any) {
	m.Helper()
	m.note(fmt.Sprint(args...))
	m.T.Error(args...)
}

func (m *trial) Fatalf(format string, args ...any) {
	m.Helper()
	m.note(fmt.Sprintf(format, args...))
	m.T.Fatalf(format, args...)
}

func (m *trial) Fatal(args ...any) {
	m.Helper()
	m.note(fmt.Sprint(args...))
	m.T.Fatal(args...)
}

func (m *trial) note(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.differs = append(m.differs, what)
}

// skip ends a row that needs something this machine lacks.
func (m *trial) skip(format string, args ...any) {
	m.Helper()
	m.skipped = fmt.Sprintf(format, args...)
	m.Skip(m.skipped)
}

// outcome is the last column of the table.
func (m *trial) outcome() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.skipped != "":
		return "skipped: " + m.skipped
	case len(m.differs) > 0:
		first, _, _ := strings.Cut(m.differs[0], "\n")
		if len(first) > 160 {
			first = first[:160] + "…"
		}
		return first
	case m.Failed():
		return "failed, see the log"
	}
	return "ok"
}

// TestMatrix runs the main path in all supported environments, and prints a table. It fails if
// anything differs from what is promised.
func TestMatrix(t *testing.T) {
	t.Parallel()
	var trials []*trial
	rows := append(postgresRows(), natsRows()...)
	t.Run("in", func(t *testing.T) {
		for _, row := range rows {
			if !row.short && !wholeMatrix {
				continue
			}
			m := &trial{name: row.name}
			trials = append(trials, m)
			t.Run(row.name, func(t *testing.T) {
				t.Parallel()
				m.T, m.begun = t, time.Now()
				t.Cleanup(func() { m.seconds = time.Since(m.begun).Seconds() })
				row.run(m)
			})
		}
	})
	if wholeMatrix || t.Failed() {
		printMatrix(t, trials)
	}
}

func printMatrix(t *testing.T, trials []*trial) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\tCHECKED\tSIGN-UPS\tPUBLISHED\tMAILS\tDUPLICATES\tORDER\tSECONDS\tOUTCOME")
	ok, ran := 0, 0
	for _, m := range trials {
		if m.T == nil { // left out by -run
			continue
		}
		ran++
		order, outcome := "kept", m.outcome()
		if m.disorder > 0 {
			order = fmt.Sprint(m.disorder, " wrong")
		}
		if outcome == "ok" {
			ok++
		}
		mails := fmt.Sprint(m.mails)
		if m.copies > 0 {
			mails += fmt.Sprintf(" (+%d again)", m.copies)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%d\t%s\t%.0f\t%s\n", m.name, m.checked, m.signUps, m.published, mails, m.duplicates, order, m.seconds, outcome)
	}
	if err := w.Flush(); err != nil {
		t.Error(err)
	}
	fmt.Printf("\n%s\n%d of %d rows ok\n\n", text.String(), ok, ran)
}
