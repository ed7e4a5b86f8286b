package config_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/internal/config"
)

// grouped is a schema with a group of relays.
func grouped() *config.Schema {
	return schema().With(config.Group{Name: "relays", Usage: "one for each database", Keys: func(entry string) []config.Key {
		return []config.Key{
			{Name: "database_url", Secret: true, Used: true, Usage: "PostgreSQL"},
			{Name: "stream", Default: strings.ToUpper(entry), Used: true, Usage: "name of the stream", Parse: func(text string) (string, error) {
				if text == "x*" {
					return "", errors.New("no name")
				}
				return text, nil
			}, Want: "a name"},
		}
	}})
}

// TestGroup: entries come from the file and from variables, have their defaults, and keep their secrets.
func TestGroup(t *testing.T) {
	url := "postgres://ann:" + secret + "@host/x"
	from := file(t, "url", url)
	for name, text := range map[string]string{
		"a.yaml": "stream: A\nrelays:\n  orders:\n    database_url: " + url + "\n  bill-ing:\n    database_url_file: " + from + "\n    stream: BILLS\n  empty:\n",
		"a.toml": "stream = \"A\"\n[relays.orders]\ndatabase_url = \"" + url + "\"\n[relays.bill-ing]\ndatabase_url_file = \"" + from + "\"\nstream = \"BILLS\"\n[relays.empty]\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, name, text)
			c, err := grouped().Load(path, []string{
				"PGJET_RELAYS__ORDERS__STREAM=ORDERS2", "PGJET_RELAYS__MORE__DATABASE_URL_FILE=" + from, "PGJET_RELAYS__VOID__STREAM=",
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := c.Entries("relays"), []string{"bill-ing", "empty", "more", "orders"}; !slices.Equal(got, want) {
				t.Errorf("the entries are %v, want %v", got, want)
			}
			for key, want := range map[string]string{
				"stream": "A", "relays.orders.stream": "ORDERS2", "relays.bill-ing.stream": "BILLS", "relays.empty.stream": "EMPTY", "relays.more.stream": "MORE",
				"relays.orders.database_url": url, "relays.bill-ing.database_url": url, "relays.more.database_url": url, "relays.empty.database_url": "",
			} {
				if v, _ := c.Lookup(key); v.Text != want {
					t.Errorf("%s is not what it should be", key)
				}
			}
			if v := value(t, c, "relays.orders.database_url"); v.Text != "****" || !strings.HasPrefix(v.Origin, path) {
				t.Errorf("the address is shown as %v", v)
			}
			if v := value(t, c, "relays.more.stream"); v.Text != "MORE" || v.Origin != "default" {
				t.Errorf("the default is shown as %v", v)
			}
		})
	}
	c, err := grouped().Load(file(t, "b.yaml", "relays:\n"), nil, nil)
	if err != nil || len(c.Entries("relays")) != 0 {
		t.Errorf("without entries there are %v, %v", c.Entries("relays"), err)
	}
}

func TestGroupFaults(t *testing.T) {
	for _, row := range []struct {
		text    string
		environ []string
		says    []string
	}{
		{"relays:\n  orders:\n    steram: A\n", nil, []string{`:3: unknown key "relays.orders.steram", did you mean relays.orders.stream?`}},
		{"relays:\n  orders:\n    stream: x*\n", nil, []string{`:3: relays.orders.stream is "x*", want a name`}},
		{"relays:\n  Orders:\n    stream: A\n", nil, []string{"relays.Orders: a name is lower-case letters"}},
		{"relays:\n  - stream: A\n", nil, []string{"relays is a section, want keys below it"}},
		{"relays: orders\n", nil, []string{"relays is a section, want keys below it"}},
		{"relays:\n  orders: A\n", nil, []string{"relays.orders is a section, want keys below it"}},
		{"relay:\n  orders:\n    stream: A\n", nil, []string{`unknown key "relay"`}},
		{"relays:\n  orders:\n    database_url: postgres://h/x\n    database_url_file: /x\n", nil, []string{"relays.orders.database_url and relays.orders.database_url_file are both given"}},
		{"", []string{"PGJET_RELAYS__ORDERS__STERAM=A"}, []string{"PGJET_RELAYS__ORDERS__STERAM", "did you mean relays.orders.stream?"}},
		{"", []string{"PGJET_RELAYS__ORDERS__STREAM_FILE=A"}, []string{"PGJET_RELAYS__ORDERS__STREAM_FILE"}},
		{"", []string{"PGJET_RELAYS__ORDERS__DATABASE_URL=x", "PGJET_RELAYS__ORDERS__DATABASE_URL_FILE=/x"}, []string{"PGJET_RELAYS__ORDERS__DATABASE_URL and PGJET_RELAYS__ORDERS__DATABASE_URL_FILE are both given"}},
	} {
		_, err := grouped().Load(file(t, "a.yaml", row.text), row.environ, nil)
		check(t, err, row.says...)
	}
}

// TestGroupHash: it changes with an entry's keys.
func TestGroupHash(t *testing.T) {
	hash := func(text string) string {
		c, err := grouped().Load(file(t, "a.yaml", text), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Hash()
	}
	if hash("relays: {a: {stream: X}}\n") == hash("relays: {a: {stream: Y}}\n") || hash("stream: X\n") == hash("stream: X\nrelays: {a: {stream: X}}\n") {
		t.Error("the hash does not change with an entry")
	}
}

// TestGroupIsWritten as a comment.
func TestGroupIsWritten(t *testing.T) {
	var b strings.Builder
	if err := grouped().Write(&b); err != nil {
		t.Fatal(err)
	}
	if want := "# relays:"; !strings.Contains(b.String(), want) || !strings.Contains(b.String(), "\n#   NAME:\n#     database_url: ") {
		t.Errorf("it writes\n%s", b.String())
	}
	if c, err := grouped().Load(file(t, "a.yaml", b.String()), nil, nil); err != nil || len(c.Entries("relays")) != 0 {
		t.Errorf("what is written has entries, %v", err)
	}
}

// TestGroupNeedsARestart: entries that come, go or change are refused while the process runs.
func TestGroupNeedsARestart(t *testing.T) {
	t.Parallel()
	const one = "relays:\n  a:\n    stream: A\n"
	for text, says := range map[string]string{
		one + "  b:\n    stream: B\n":    `relays.b.stream is \"B\", but the process runs with \"\"`,
		"relays:\n  a:\n    stream: B\n": `relays.a.stream is \"B\", but the process runs with \"A\"`,
		"{}\n":                           `relays.a.stream is \"\", but the process runs with \"A\"`,
	} {
		f := followAs(t, grouped(), file(t, "a.yaml", one))
		replace(t, f.path, text)
		f.says(says, 1)
		if got := f.Current().Entries("relays"); !slices.Equal(got, []string{"a"}) {
			t.Errorf("the entries are %v", got)
		}
	}
}
