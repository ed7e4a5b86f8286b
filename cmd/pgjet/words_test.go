package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/testenv"
)

// nowhere is an address on which nothing answers.
const nowhere = "127.0.0.1:1"

func TestWrongUse(t *testing.T) {
	t.Parallel()
	database := "postgres://ann:" + secret + "@" + nowhere + "/x"
	noKey, err := filepath.Abs("main.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		args string
		env  env
		says []string
	}{
		{name: "unknown command", args: "publish", says: []string{`unknown command "publish"`, "'pgjet --help'"}},
		{name: "unknown command of a group", args: "migrate upp", says: []string{`unknown command "upp"`, "did you mean up?", "'pgjet migrate --help'"}},
		{name: "unknown command of one that runs", args: "relay stauts", says: []string{`unknown command "stauts"`, "did you mean status?", "'pgjet relay --help'"}},
		{name: "unknown command of the user service", args: "users grnat", says: []string{"did you mean grant?"}},
		{name: "unknown command of dev", args: "dev evn", says: []string{"did you mean env?"}},
		{name: "unknown stand-in", args: "standin profile", says: []string{`"profile" is none of profiles, billing`, "did you mean profiles?"}},
		{name: "unknown role", args: "nats permissions rely", says: []string{"did you mean relay?"}},
		{name: "a word too many", args: "relay now", says: []string{`"now"`, "'pgjet relay --help'"}},
		{name: "unknown consumer", args: "consume mails", says: []string{`"mails"`, "'pgjet consume --help'"}},
		{name: "no name of a consumer", args: "consumer get", says: []string{"name of one consumer", "'pgjet consumer get --help'"}},
		{name: "two names of consumers", args: "consumer get a b", says: []string{"name of one consumer", "pgjet consumer ls"}},
		{name: "no name of a durable consumer", args: "consumer ensure", says: []string{"names of consumers", "welcome-mailer", "pgjet-users"}},
		{name: "no database for consumers", args: "consumer ls", says: []string{"--database-url", "PGJET_DATABASE_URL"}},
		{name: "no database for the console", args: "console", says: []string{"--database-url", "PGJET_DATABASE_URL"}},
		{name: "a public console that asks nobody", args: "console --listen 0.0.0.0:0 --database-url " + database, says: []string{"--token-file", "--user-header"}},
		{name: "a public console by name that asks nobody", args: "console --listen :0 --read-only --database-url " + database, says: []string{"--token-file", "--user-header"}},
		{name: "no token of a console", args: "console --token-file nothing --database-url " + database, says: []string{"--token-file", "nothing"}},
		{name: "an empty token of a console", args: "console --token-file " + os.DevNull + " --database-url " + database, says: []string{"--token-file", "16"}},
		{name: "two ways to log in to a console", args: "console --token-file x --user-header y --database-url " + database, says: []string{"--token-file", "--user-header"}},
		{name: "proxies of a console that are none", args: "console --user-header y --user-proxies z --database-url " + database, says: []string{"--user-proxies", `"z"`}},
		{name: "no database for the status", args: "status", says: []string{"--database-url", "PGJET_DATABASE_URL"}},
		{name: "bad NATS URL for the status", args: "status --nats-url http://ann:" + secret + "@host --database-url " + database, says: []string{"--nats-url", "nats://"}},
		{name: "no database for an event", args: "event timeline x", says: []string{"--database-url", "PGJET_DATABASE_URL"}},
		{name: "no event to get", args: "event get", says: []string{"'pgjet event get --help'"}},
		{name: "no event", args: "event timeline", says: []string{"'pgjet event timeline --help'"}},
		{name: "bad output of consumers", args: "consumer ls -o xml", says: []string{"--output", "table or json"}},
		{name: "bad NATS URL for a durable consumer", args: "consumer ensure welcome-mailer --nats-url http://host", says: []string{"--nats-url"}},
		{name: "unknown flag", args: "users --ader 1", says: []string{"--ader", "did you mean --addr?", "'pgjet users --help'"}},
		{name: "flag without its value", args: "users --addr", says: []string{"--addr"}},
		{name: "bad number", args: "dev --port many", says: []string{"--port", "'pgjet dev --help'"}},
		{name: "port out of range", args: "dev --port 70000", says: []string{"--port", "1 to 65525"}},
		{name: "bad log level", args: "relay --log-level loud", says: []string{"--log-level"}},
		{name: "bad output", args: "migrate status -o xml", says: []string{"--output", "table or json"}},
		{name: "bad output of the outbox", args: "outbox status -o xml", says: []string{"--output", "table or json"}},
		{name: "negative age", args: "outbox prune --older-than -1h", says: []string{"--older-than"}},
		{name: "no database for the outbox", args: "outbox status", says: []string{"--database-url", "PGJET_DATABASE_URL"}},
		{name: "no id of a scheduled event", args: "outbox scheduled get reminder", says: []string{`"reminder"`, "pgjet outbox scheduled ls"}},
		{name: "no reason to cancel", args: "outbox scheduled cancel 0199b1c2-6f00-7000-8000-000000000001", says: []string{"--reason"}},
		{name: "no scheduled event to cancel", args: "outbox scheduled cancel", says: []string{"'pgjet outbox scheduled cancel --help'"}},
		{name: "no time to bring forward to", args: "outbox scheduled bring-forward 0199b1c2-6f00-7000-8000-000000000001 --to noon", says: []string{"--to", `"noon"`}},
		{name: "no database for users", args: "users", says: []string{"--database-url", "PGJET_DATABASE_URL", "postgres://"}},
		{name: "no key file", args: "users --token-key-file nothing --database-url " + database, says: []string{"--token-key-file", "nothing"}},
		{name: "no key in the file", args: "users --token-key-file " + noKey + " --database-url " + database, says: []string{"--token-key-file", "main.go", "JWK"}},
		{name: "bad URL of keys", args: "users --token-jwks-url host/keys --database-url " + database, says: []string{"--token-jwks-url", "https://"}},
		{name: "no role", args: "users grant ann@example.com --reason x", says: []string{"admin", "'pgjet users grant --help'"}},
		{name: "unknown role", args: "users grant ann@example.com root --reason x --database-url " + database, says: []string{`"root"`, "admin"}},
		{name: "no reason for a role", args: "users revoke ann@example.com admin --database-url " + database, says: []string{"--reason"}},
		{name: "unknown command of users", args: "users promote", says: []string{`"promote"`}},
		{name: "no database for the relay", args: "relay", says: []string{"--database-url", "PGJET_DATABASE_URL"}},
		{name: "no database for a consumer", args: "consume welcome-mailer", says: []string{"--database-url", "PGJET_DATABASE_URL"}},
		{name: "no database for migrate", args: "migrate up", says: []string{"--database-url", "PGJET_DATABASE_URL"}},
		{name: "bad database URL", args: "migrate up --database-url postgres://ann:" + secret + "@host:x/y", says: []string{"--database-url"}},
		{name: "escaped database URL", args: "users --database-url postgres://ann:%zz" + secret + "@host/y", says: []string{"--database-url"}},
		{name: "bad NATS URL for the relay", args: "relay --nats-url http://ann:" + secret + "@host --database-url " + database, says: []string{"--nats-url", "nats://"}},
		{name: "bad NATS URL for a consumer", args: "consume welcome-mailer --nats-url nats:// --smtp-url smtp://host --database-url " + database, says: []string{"--nats-url", "nats://"}},
		{name: "bad NATS URL for the stream", args: "stream ensure --nats-url nats://ann:" + secret + "@%zz", says: []string{"--nats-url", "nats://"}},
		{name: "bad NATS URL for dev", args: "dev --nats-url http://host", says: []string{"--nats-url", "nats://"}},
		{name: "no credentials file", args: "relay --nats-creds nothing --database-url " + database, says: []string{"--nats-creds", "nothing"}},
		{name: "no seed of an NKey", args: "consume directory --nats-nkey nothing --database-url " + database, says: []string{"--nats-nkey", "nothing"}},
		{name: "a file that is no seed", args: "users --nats-url nats://host --nats-nkey " + os.DevNull + " --database-url " + database, says: []string{"--nats-nkey"}},
		{name: "no certificates of NATS", args: "stream ensure --nats-ca nothing", says: []string{"--nats-ca", "nothing"}},
		{name: "a file that holds no certificate", args: "relay --nats-ca " + os.DevNull + " --database-url " + database, says: []string{"--nats-ca", os.DevNull}},
		{name: "no client certificate", args: "services ls --nats-cert nothing --nats-key nowhere", says: []string{"--nats-cert", "nothing"}},
		{name: "a certificate without its key", args: "relay --nats-cert nothing --database-url " + database, says: []string{"--nats-cert", "--nats-key"}},
		{name: "a key without its certificate", args: "relay --database-url " + database, env: env{"PGJET_NATS_KEY": "nothing"}, says: []string{"--nats-cert", "--nats-key"}},
		{name: "two users of NATS", args: "stream ensure --nats-creds a --nats-nkey b", says: []string{"--nats-creds", "--nats-nkey"}},
		{name: "a domain that is no name", args: "stream ensure --nats-domain a.b", says: []string{"--nats-domain", `"a.b"`}},
		{name: "no mail server", args: "consume welcome-mailer --database-url " + database, says: []string{"--smtp-url", "PGJET_SMTP_URL", "smtp://"}},
		{name: "bad mail server", args: "consume welcome-mailer --smtp-url imap://ann:" + secret + "@host --database-url " + database, says: []string{"--smtp-url", "smtp://"}},
		{name: "unreadable mail server", args: "consume welcome-mailer --smtp-url smtp://ann:" + secret + "@%zz --database-url " + database, says: []string{"--smtp-url"}},
		{
			name: "bad sender", args: "consume welcome-mailer --smtp-url smtp://host --mail-from nobody --database-url " + database,
			says: []string{"--mail-from"},
		},
		{
			name: "negative rate", args: "consume welcome-mailer --smtp-url smtp://host --mail-rate -1 --database-url " + database,
			says: []string{"--mail-rate", "0.1 to 1000"},
		},
		{
			name: "rate that is no number", args: "consume welcome-mailer --smtp-url smtp://host --mail-rate nan --database-url " + database,
			says: []string{"--mail-rate", "0.1 to 1000"},
		},
		{name: "bad variable", args: "users", env: env{"PGJET_LOG_LEVEL": "loud"}, says: []string{"PGJET_LOG_LEVEL", "loud"}},
		{
			name: "bad variable of OpenTelemetry", args: "users --addr 127.0.0.1:0 --database-url " + database,
			env: env{"OTEL_TRACES_EXPORTER": "pigeon"}, says: []string{`OTEL_TRACES_EXPORTER="pigeon"`},
		},
		{name: "bad database in a variable", args: "migrate up", env: env{"PGJET_DATABASE_URL": "postgres://ann:" + secret + "@host:x/y"}, says: []string{"--database-url"}},
		{name: "bad stream in a variable", args: "relay status", env: env{"PGJET_STREAM": "a.b"}, says: []string{"PGJET_STREAM", `"a.b" is no name that NATS takes for a stream`}},
		{name: "bad number in a variable", args: "dev", env: env{"PGJET_PORT": "many"}, says: []string{"PGJET_PORT"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			code, p := runProcess(t, row.env, strings.Fields(row.args)...)
			if code != exitUsage || p.Stdout.String() != "" {
				t.Errorf("exit code %d, want 2 and nothing on stdout, of %s", code, p)
			}
			for _, w := range row.says {
				if !strings.Contains(p.Stderr.String(), w) {
					t.Errorf("stderr does not say %q, of %s", w, p)
				}
			}
		})
	}
}

// TestUnreachable: commands that do not wait report what they cannot reach.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	database, nats := "postgres://ann:"+secret+"@"+nowhere+"/x", "nats://ann:"+secret+"@"+nowhere
	refused(t, exitUnreachable, []string{"migrate", "up", "--database-url", database}, "PostgreSQL", nowhere)
	refused(t, exitUnreachable, []string{"migrate", "status", "--database-url", database}, "PostgreSQL", nowhere)
	refused(t, exitUnreachable, []string{"outbox", "status", "--database-url", database}, "PostgreSQL", nowhere)
	refused(t, exitUnreachable, []string{"relay", "status", "--database-url", database}, "PostgreSQL", nowhere)
	refused(t, exitUnreachable, []string{"stream", "ensure", "--nats-url", nats}, "NATS")
	refused(t, exitUnreachable, []string{"consumer", "ls", "--database-url", database}, "PostgreSQL", nowhere)
	refused(t, exitUnreachable, []string{"consumer", "ensure", "welcome-mailer", "--nats-url", nats}, "NATS")
	refused(t, exitUnreachable, []string{"consumer", "ls", "--database-url", testenv.DatabaseURL(t), "--nats-url", nats}, "NATS")
	refused(t, exitUnreachable, []string{"ready", "--admin-addr", nowhere}, nowhere)
	refused(t, exitUnreachable, []string{"users", "--database-url", database, "--addr", "nowhere.invalid:1"}, "--addr")
	refused(t, exitUnreachable, []string{"users", "--database-url", database, "--addr", anyPort, "--admin-addr", "1"}, "--admin-addr")
}

// TestServicesWaitForTheirServers: services start before the servers they need, and report which
// ones are missing.
func TestServicesWaitForTheirServers(t *testing.T) {
	t.Parallel()
	database, nats := "postgres://ann:"+secret+"@"+nowhere+"/x", "nats://ann:"+secret+"@"+nowhere
	users, relay := startUsers(t, database), startRelay(t, database, nats)
	mailer := startMailer(t, database, nats, "ann:"+secret+"@"+nowhere)
	users.NotReady(users.Admin, "database_unreachable")
	relay.NotReady(relay.Admin, "database_unreachable")
	mailer.NotReady(mailer.Admin, "nats_unreachable")
}

// TestLogIsJSON: also the log lines of libraries are JSON.
func TestLogIsJSON(t *testing.T) {
	t.Parallel()
	users := start(t, env{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + nowhere}, "users",
		"--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--admin-addr", anyPort, "--log-level", "debug")
	signUp(t, users.Logged("serving the API", "addr"), "ann@example.com")
	users.Stop()
	if got, want := len(users.Log("")), strings.Count(users.Stderr.String(), "\n"); got != want || len(users.Log("WARN")) == 0 {
		t.Errorf("%d of %d lines are JSON, want all, and a warning, of %s", got, want, users)
	}
}

// TestHelpShowsEveryFlag runs each command with --help.
func TestHelpShowsEveryFlag(t *testing.T) {
	t.Parallel()
	for _, cmd := range allCommands(newRoot()) {
		var want []string
		cmd.InitDefaultHelpFlag()
		cmd.Flags().AddFlagSet(cmd.InheritedFlags())
		cmd.Flags().VisitAll(func(f *pflag.Flag) { want = append(want, "--"+f.Name, f.Usage) })
		for _, c := range cmd.Commands() {
			want = append(want, c.Name(), c.Short)
		}
		path := strings.Fields(cmd.CommandPath())[1:]
		t.Run(strings.Join(path, " "), func(t *testing.T) {
			t.Parallel()
			out := must(t, exitOK, append(path, "--help")...)
			for _, w := range want {
				if w == "" || !strings.Contains(out, w) {
					t.Errorf("the help does not say %q:\n%s", w, out)
				}
			}
		})
	}
}

// allCommands returns cmd and all below it.
func allCommands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		all = append(all, allCommands(c)...)
	}
	return all
}

// TestVariablesAreFlags: a variable sets what its flag sets, and the flag wins.
func TestVariablesAreFlags(t *testing.T) {
	t.Parallel()
	vars := env{"PGJET_DATABASE_URL": testenv.DatabaseURL(t), "PGJET_OUTPUT": "json"}
	code, p := runProcess(t, vars, "migrate", "status")
	if code != exitOK || !json.Valid([]byte(p.Stdout.String())) {
		t.Errorf("exit code %d, want 0 and JSON, of %s", code, p)
	}
	code, p = runProcess(t, vars, "migrate", "status", "-o", "table")
	if code != exitOK || !strings.HasPrefix(p.Stdout.String(), "SCHEMA") {
		t.Errorf("exit code %d, want 0 and a table, of %s", code, p)
	}
	vars["PGJET_ADDR"], vars["PGJET_ADMIN_ADDR"], vars["PGJET_LOG_LEVEL"] = anyPort, "not an address", "debug"
	users := start(t, vars, "users", "--admin-addr", anyPort)
	signUp(t, users.Logged("serving the API", "addr"), "ann@example.com")
	checkPages(t, users.Logged("starting", "admin"))
	must(t, exitOK, "--version")
}

func TestFromEnvironment(t *testing.T) {
	vars := map[string]string{"PGJET_A_B": "from the variable", "PGJET_C": "from the variable", "PGJET_N": "7"}
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	ab, c, d := f.String("a-b", "default", ""), f.String("c", "default", ""), f.String("d", "default", "")
	n := f.Int("n", 1, "")
	if err := f.Parse([]string{"--c", "from the flag"}); err != nil {
		t.Fatal(err)
	}
	getenv := func(name string) string { return vars[name] }
	if err := fromEnvironment(f, getenv); err != nil {
		t.Fatal(err)
	}
	if got, want := []string{*ab, *c, *d}, []string{"from the variable", "from the flag", "default"}; !slices.Equal(got, want) || *n != 7 {
		t.Errorf("flags are %q and %d, want %q and 7", got, *n, want)
	}

	f = pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.Int("n", 1, "")
	f.Bool("a-b", false, "")
	err := fromEnvironment(f, getenv)
	if err == nil || !strings.Contains(err.Error(), "PGJET_A_B") {
		t.Errorf("fromEnvironment() = %v, want an error that names PGJET_A_B", err)
	}
}
