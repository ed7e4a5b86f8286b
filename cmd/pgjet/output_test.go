package main

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/upkeep"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

// outputs has, for each command that prints JSON, values of the printed types.
var outputs = map[string][]any{
	"audit run":                      {operate.Audit{}},
	"audit show":                     {operate.Audits{}},
	"check":                          {checkVerdict{}},
	"config show":                    {configView{}},
	"config validate":                {validConfig{}},
	"consumer ensure":                {ensured{}},
	"consumer get":                   {status.Status{}},
	"consumer ls":                    {[]status.Status{}},
	"consumer pause":                 {changed{}},
	"consumer resume":                {changed{}},
	"dead discard":                   {[]inbox.Outcome{}},
	"dead export":                    {inbox.DeadMessage{}},
	"dead get":                       {inbox.LetterDetails{}},
	"dead groups":                    {[]inbox.Group{}},
	"dead ls":                        {[]inbox.Letter{}},
	"dead redrive":                   {[]inbox.Outcome{}},
	"dead reopen":                    {[]inbox.Outcome{}},
	"doctor":                         {operate.Diagnosis{}},
	"event follow":                   {operate.Item{}},
	"event get":                      {operate.Event{}},
	"event ls":                       {operate.Page{}},
	"event tail":                     {operate.Item{}},
	"event timeline":                 {eventTimeline{}},
	"explain":                        {[]explanation{}},
	"key":                            {operate.Key{}},
	"migrate status":                 {[]migrations.Status{}},
	"migrate up":                     {changed{}},
	"nats accounts":                  {[]natsAccount{}},
	"nats permissions":               {grant{}},
	"op cancel":                      {operation.Record{}},
	"op get":                         {operate.OperationState{}},
	"op ls":                          {[]operation.Record{}},
	"op resume":                      {operate.OperationState{}, replay.Plan{}, replay.Result{}},
	"outbox prune":                   {pruneResult{}},
	"outbox scheduled bring-forward": {changed{}},
	"outbox scheduled cancel":        {changed{}},
	"outbox scheduled get":           {upkeep.Scheduled{}},
	"outbox scheduled ls":            {[]upkeep.Scheduled{}},
	"outbox status":                  {upkeep.Status{}},
	"relay adopt":                    {[]relay.UnknownMessage{}},
	"relay pause":                    {changed{}},
	"relay quarantine drop":          {quarantineResult{}},
	"relay quarantine ls":            {[]relay.Quarantined{}},
	"relay quarantine retry":         {quarantineResult{}},
	"relay resume":                   {changed{}},
	"relay status":                   {relayView{}},
	"replay":                         {replay.Plan{}, replay.Result{}},
	"republish plan":                 {operate.Republication{}},
	"republish run":                  {operate.OperationState{}},
	"retry":                          {[]inbox.RetryOutcome{}},
	"saga get":                       {saga.Record{}},
	"saga ls":                        {[]saga.Record{}},
	"saga retry":                     {changed{}},
	"services get":                   {[]instance{}},
	"services ls":                    {[]instance{}},
	"status":                         {operate.Status{}},
	"stream ensure":                  {ensured{}},
	"stream get":                     {operate.Message{}},
	"stream status":                  {operate.Stream{}},
	"users grant":                    {changed{}},
	"users revoke":                   {changed{}},
	"version":                        {buildInfo{}},
}

// unprinted are the commands without JSON: they print another form, or input for a program.
var unprinted = map[string]string{
	"config init":   "a file",
	"console":       "it serves a page",
	"dead export":   "JSON lines are its only form",
	"dev env":       "variables of a shell",
	"dev reset":     "what it removed",
	"migrate print": "SQL",
	"ready":         "what the process answers, which is JSON",
	"users key":     "a key",
}

// printing calls fn for each command that ends without a signal.
func printing(fn func(path string, cmd *cobra.Command)) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			walk(c)
		}
		path := strings.TrimPrefix(cmd.CommandPath(), "pgjet ")
		runs := cmd.Flag("log-level") != nil && path != "config show"
		if !cmd.HasSubCommands() && !runs && cmd.Name() != "help" && !strings.HasPrefix(path, "completion") {
			fn(path, cmd)
		}
	}
	walk(newRoot())
}

// TestEveryCommandHasJSON: each command that prints facts has the flag --output and a schema.
func TestEveryCommandHasJSON(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	printing(func(path string, cmd *cobra.Command) {
		seen[path] = true
		if flag := cmd.Flag("output"); flag == nil != (unprinted[path] != "") || flag != nil && (flag.Shorthand != "o" || flag.DefValue != "table") {
			t.Errorf("pgjet %s has no flag --output, -o, or is said to need none", path)
		}
		if outputs[path] == nil && unprinted[path] == "" {
			t.Errorf("pgjet %s has no schema", path)
		}
	})
	for path := range outputs {
		if !seen[path] {
			t.Errorf("there is no pgjet %s", path)
		}
	}
	for path := range unprinted {
		if !seen[path] {
			t.Errorf("there is no pgjet %s", path)
		}
	}
}

// TestUnknownOutput: every command refuses a form of output, or a state, that it does not have, and lists those that it has.
func TestUnknownOutput(t *testing.T) {
	t.Parallel()
	printing(func(path string, cmd *cobra.Command) {
		if cmd.Flag("state") != nil && states["pgjet "+path] == nil {
			t.Errorf("the values of --state of pgjet %s are not listed", path)
		}
		flag := cmd.Flag("output")
		if flag == nil {
			return
		}
		for _, form := range append(formsOf(flag), "yaml") {
			_ = flag.Value.Set(form) // a text
			if err := checkChoices(cmd); (err != nil) != (form == "yaml") {
				t.Errorf("pgjet %s -o %s: %v", path, form, err)
			}
		}
	})
	refused(t, exitUsage, []string{"version", "-o", "yaml"}, `--output is "yaml", want table or json`)
	refused(t, checkUnknown, []string{"check", "-o", "yaml"}, `--output is "yaml", want table, json or prometheus`)
	refused(t, exitUsage, []string{"op", "ls", "--state", "lost"}, `--state is "lost", want one of planned, `)
	refused(t, exitUsage, []string{"dead", "ls", "-o", "yaml"}, `--output is "yaml", want table, json, or name`)
}

// schemaFile returns the path of a command's schema in the repository.
func schemaFile(path string) string {
	return "docs/reference/output/" + strings.ReplaceAll(path, " ", "-") + ".json"
}

// TestOutputSchemas: docs/reference/output has the schema of each command. To write them again: UPDATE=1 go test -run TestOutputSchemas ./cmd/pgjet
func TestOutputSchemas(t *testing.T) {
	for path, values := range outputs {
		want, err := json.MarshalIndent(outputSchema(path, values, false), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, '\n')
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(root+schemaFile(path), want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(root + schemaFile(path)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what pgjet %s prints (%v); if that is meant, run: UPDATE=1 go test -run TestOutputSchemas ./cmd/pgjet", schemaFile(path), path, err)
		}
	}
	files, err := filepath.Glob(root + schemaFile("*"))
	if err != nil || len(files) != len(outputs) {
		t.Errorf("%d schemas, want %d: %v", len(files), len(outputs), err)
	}
}

// outputSchema returns the schema of a command's output. A strict schema refuses fields that the
// types do not have.
func outputSchema(path string, values []any, strict bool) map[string]any {
	var any []any
	for _, v := range values {
		any = append(any, typeSchema(reflect.TypeOf(v), strict))
	}
	schema := map[string]interface{}{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pgjet " + path + " -o json"}
	if len(any) > 1 {
		schema["anyOf"] = any
		return schema
	}
	for name, value := range any[0].(map[string]interface{}) {
		schema[name] = value
	}
	return schema
}

var (
	timeType = reflect.TypeFor[time.Time]()
	uuidType = reflect.TypeFor[uuid.UUID]()
	rawType  = reflect.TypeFor[json.RawMessage]()
	textType = reflect.TypeFor[encoding.TextMarshaler]()
)

// typeSchema returns the schema of the JSON of a type.
func typeSchema(t reflect.Type, strict bool) map[string]any {
	switch {
	case t == timeType:
		return map[string]any{"type": "string", "format": "date-time"}
	case t == uuidType:
		return map[string]any{"type": "string", "format": "uuid"}
	case t == rawType:
		return map[string]any{}
	case t.Kind() != reflect.Pointer && t.Implements(textType):
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		s := typeSchema(t.Elem(), strict)
		if one, ok := s["type"].(string); ok {
			s["type"] = []any{one, "null"}
		}
		return s
	case reflect.Struct:
		properties, required := make(map[string]any), []string{}
		fieldSchemas(t, strict, properties, &required)
		s := map[string]any{"type": "object", "properties": properties, "required": required}
		if strict {
			s["additionalProperties"] = false
		}
		return s
	case reflect.Map:
		return map[string]any{"type": []any{"object", "null"}, "additionalProperties": typeSchema(t.Elem(), strict)}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return map[string]any{"type": []any{"string", "null"}, "contentEncoding": "base64"}
		}
		return map[string]any{"type": "array", "items": typeSchema(t.Elem(), strict)}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Interface:
		return map[string]any{}
	}
	return map[string]any{"type": "integer"} // the other kinds have no JSON
}

// fieldSchemas adds the fields of a struct, and those of what is embedded in it.
func fieldSchemas(t reflect.Type, strict bool, properties map[string]any, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && tag == "":
			fieldSchemas(f.Type, strict, properties, required)
			continue
		case !f.IsExported() || tag == "-":
			continue
		case tag == "":
			tag = f.Name
		}
		properties[tag] = typeSchema(f.Type, strict)
		if !strings.Contains(options, "omit") {
			*required = append(*required, tag)
		}
	}
}

// An outputRig runs commands in a system where one of each kind of thing has happened, and checks
// the output against the schemas.
type outputRig struct {
	*testing.T
	flags []string
	asked map[string]bool
}

// ask runs a command with -o json, and returns the last value that it prints. It accepts all exit
// codes except those of wrong use and of failure.
func (r *outputRig) ask(line string, more ...string) any {
	r.Helper()
	cmd, rest, err := newRoot().Find(append(strings.Fields(line), more...))
	if err != nil {
		r.Fatal(err)
	}
	path := strings.TrimPrefix(cmd.CommandPath(), "pgjet ")
	args := append(strings.Fields(path), rest...)
	if path != "dead export" {
		args = append(args, "-o", "json")
	}
	for i := 0; i < len(r.flags); i += 2 {
		if cmd.Flag(r.flags[i]) != nil {
			args = append(args, "--"+r.flags[i], r.flags[i+1])
		}
	}
	var stdout, stderr bytes.Buffer
	code := run(r.Context(), args, &stdout, &stderr)
	if path != "check" && (code == exitFailed || code == exitUsage || code == exitUnreachable) {
		r.Errorf("pgjet %s ends with %d: %s", line, code, &stderr)
		return nil
	}
	r.asked[path] = true
	return r.follows(path, &stdout)
}

// follows checks all values in out against the schema of a command, and returns the last one.
func (r *outputRig) follows(path string, out *bytes.Buffer) (last any) {
	r.Helper()
	text, values := out.String(), 0
	schema := compileSchema(r.T, roundTrip(r.T, outputSchema(path, outputs[path], true)))
	for dec := json.NewDecoder(out); dec.More(); values++ {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			r.Fatalf("pgjet %s prints %.500q: %v", path, text, err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			r.Fatal(err)
		}
		if err := schema.Validate(value); err != nil {
			r.Errorf("pgjet %s prints what its schema does not have: %v\n%.2000s", path, err, raw)
		}
		last = value
	}
	if values == 0 {
		r.Errorf("pgjet %s prints nothing", path)
	}
	return last
}

// roundTrip encodes a value as JSON and decodes it.
func roundTrip(t *testing.T, v any) any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// at returns what is in a value at a path of keys and indexes; it fails the test if there is nothing.
func (r *outputRig) at(v any, path ...any) string {
	r.Helper()
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[step]
		case int:
			s, _ := v.([]any)
			if step >= len(s) {
				r.Fatalf("there is no element %d in %v", step, v)
			}
			v = s[step]
		}
	}
	return fmt.Sprint(v)
}

// TestOutputFollowsSchemas runs each command in a running system, and checks its output against its
// schema.
func TestOutputFollowsSchemas(t *testing.T) {
	t.Parallel()
	dev := startDev(t, stateDir(t), freePorts(t))
	r := &outputRig{T: t, flags: []string{"database-url", dev.Database, "nats-url", dev.NATS}, asked: make(map[string]bool)}
	db := openDB(t, dev.Database)
	fault := func(at, body string) {
		if status, _, answer := request(t, "PUT", at+"/fault", body, nil); status != 200 {
			t.Fatalf("PUT %s/fault = %d %s", at, status, answer)
		}
	}
	await := func(what, sql string) { // a condition of the database
		t.Helper()
		testenv.Eventually(t, patience, what, func() bool { return query[bool](t, db, "select exists ("+sql+")") })
	}

	// A user who is active, one whose mail is dead and whose saga waits, and one whose mail waits.
	signUp(t, dev.Users, "ann@example.com")
	await("ann is active", `select from users.users where state = 'active'`)
	fault(dev.Inbox, `{"status":550,"count":1}`)
	fault(dev.Billing, `{"status":503}`)
	signUp(t, dev.Users, "bob@example.com")
	await("bob's mail is dead", `select from pgjet.dead_letter where state = 'dead'`)
	fault(dev.Inbox, `{"status":451}`)
	signUp(t, dev.Users, "cy@example.com")
	await("cy's mail waits", `select from pgjet.intent where attempts > 0`)

	for _, user := range []string{"u1", "u2"} {
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			_, err := outbox.AppendAt(t.Context(), tx, time.Now().Add(time.Hour), events.UserStillPending{UserID: user, Email: "di@example.com", Name: "Di", CreatedAt: time.Now()})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	for _, line := range []string{
		"status", "check", "doctor", "version", "explain", "explain paused", "consumer ls", "consumer get welcome-mailer", "services ls", "services get billing",
		"outbox status", "outbox status --exact", "relay status", "migrate status", "migrate up --demo", "stream status", "stream get 1", "stream get 1 --reveal", "stream ensure",
		"consumer ensure directory", "config show", "config show --origin", "config validate " + dev.Config, "nats accounts", "nats permissions relay", "audit run", "audit show",
		"event ls", "event ls --state retrying", "event ls --state dead", "event ls --state pending", "event tail", "event timeline ann@example.com", "event timeline bob@example.com",
		"dead ls", "dead groups", "dead export --reveal", "saga ls", "outbox scheduled ls", "relay quarantine ls", "op ls", "outbox prune --dry-run", "outbox prune",
		"retry --consumer welcome-mailer", "consumer pause directory --reason test", "consumer pause directory --reason test", "status", "consumer resume directory", "consumer resume directory",
		"relay pause --reason test", "relay status", "status", "relay resume", "relay resume", "replay directory --all --yes --reason test", "replay directory --all --again --dry-run",
		"users grant ann@example.com admin --reason test", "users revoke ann@example.com admin --reason test",
	} {
		r.ask(line)
	}
	for _, e := range r.list("event ls") {
		r.ask("event get " + r.at(e, "id"))
		r.ask("key " + r.at(e, "key"))
	}
	for _, x := range r.list("saga ls") {
		r.ask("saga get " + r.at(x, "id"))
	}
	if _, err := db.Exec(t.Context(), `update pgjet.saga set state = 'needs_operator', process = null where id in (select id from pgjet.saga where state = 'running' limit 1)`); err != nil {
		t.Fatal(err)
	}
	for _, x := range r.list("saga ls --state needs_operator") {
		r.ask("saga get " + r.at(x, "id"))
		r.ask("saga retry " + r.at(x, "id") + " --reason test")
	}
	letter := r.at(r.ask("dead ls"), 0, "id")
	for _, line := range []string{
		"dead get " + letter, "dead get " + letter + " --reveal", "dead discard " + letter + " --reason test", "dead get " + letter, "dead reopen " + letter, "dead redrive " + letter,
	} {
		r.ask(line)
	}
	// The reminders of those who signed up are due within seconds: these two are not.
	for user, change := range map[string]string{"u1": "cancel", "u2": "bring-forward"} {
		id := r.at(r.list("outbox scheduled ls --key "+user), 0, "id")
		r.ask("outbox scheduled get " + id)
		r.ask("outbox scheduled get " + id + " --reveal")
		r.ask("outbox scheduled " + change + " " + id + " --reason test")
	}

	// Rows are in quarantine.
	if _, err := db.Exec(t.Context(), `insert into pgjet.quarantine (seq, event_id, reason)
		select seq, id, 'refused: test' from pgjet.outbox order by seq limit 2`); err != nil {
		t.Fatal(err)
	}
	for i, q := range r.list("relay quarantine ls") {
		r.ask([]string{"relay quarantine drop ", "relay quarantine retry "}[min(i, 1)] + r.at(q, "seq") + " --reason test")
	}
	r.ask("relay quarantine ls")
	r.ask("event ls --state quarantined")
	for _, o := range r.list("op ls") {
		r.ask("op get " + r.at(o, "id"))
	}

	// Messages are gone, and published again.
	h := newGapRig(t, 3, 7)
	r.flags = []string{"database-url", h.database, "nats-url", h.nats}
	r.ask("audit run")
	plan := r.at(r.ask("republish plan --all"), "operation")
	r.ask("op get " + plan)
	r.ask("op cancel " + plan + " --reason test")
	plan = r.at(r.ask("republish plan --all"), "operation")
	r.ask("republish run " + plan + " --yes --reason test")
	r.ask("republish plan --all") // nothing
	r.ask("relay quarantine ls")

	printing(func(path string, _ *cobra.Command) {
		if outputs[path] != nil && !r.asked[path] && !slices.Contains([]string{"event follow", "relay adopt", "op resume"}, path) {
			t.Errorf("pgjet %s was not asked", path)
		}
	})
}

// list asks for a list, or for a page of events.
func (r *outputRig) list(line string) []any {
	r.Helper()
	v := r.ask(line)
	if page, ok := v.(map[string]any); ok {
		v = page["events"]
	}
	all, _ := v.([]any)
	if len(all) == 0 {
		r.Errorf("pgjet %s lists nothing", line)
	}
	return all
}
