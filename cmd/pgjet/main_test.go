package main

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

// Short names for package program, which runs pgjet.
const (
	secret   = program.Secret
	patience = program.Patience
	anyPort  = program.AnyPort
)

type (
	process     = program.Process
	service     = program.Service
	natsProcess = program.NATSProcess
	env         = program.Env
	output      = program.Output
	logLine     = program.LogLine
)

var (
	raced            = program.Raced
	binary           = program.Binary
	command          = program.Command
	start            = program.Start
	runProcess       = program.Run
	must             = program.Must
	startService     = program.StartService
	startRelay       = program.StartRelay
	ensureStream     = program.EnsureStream
	client           = program.Client
	request          = program.Request
	get              = program.Get
	local            = program.Local
	openDB           = program.OpenDB
	checkpoint       = program.Checkpoint
	startNATSProcess = program.StartNATSProcess
	freeze           = testenv.Freeze
	ours             = program.Ours
	postgresProcess  = program.PostgresProcess
	restartPostgres  = program.RestartPostgres
	stopPostgres     = program.StopPostgres
	proxied          = program.Proxied
)

// query is [program.Query]. It is generic, so no variable can hold it.
func query[T any](t testing.TB, db *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	return program.Query[T](t, db, sql, args...)
}

func TestMain(m *testing.M) { program.Main(m) }

// refused runs a pgjet that must end with that exit code and print all of these texts.
func refused(t *testing.T, want int, args []string, words ...string) {
	t.Helper()
	code, p := runProcess(t, nil, args...)
	if code != want {
		t.Errorf("exit code %d, want %d, of %s", code, want, p)
	}
	for _, w := range words {
		if !strings.Contains(p.Stderr.String(), w) {
			t.Errorf("stderr does not say %q, of %s", w, p)
		}
	}
}
