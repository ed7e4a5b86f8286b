package console

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Database is a further database of a console, at the path /db/NAME/. It needs DB.
type Database struct {
	Name   string // "" is the name of the database
	DB     *pgxpool.Pool
	NATS   *nats.Conn          // nil: pages lack what NATS knows
	JS     jetstream.JetStream // nil is the default of NATS
	Stream string              // as in [Config]
}

// addOthers makes a console for each further database. Who may use the first console may use all.
func (c *Console) addOthers() {
	var taken []string
	for _, d := range c.config.Also {
		name := d.Name
		if name == "" && d.DB != nil {
			name = d.DB.Config().ConnConfig.Database
		}
		word := slug(name)
		for n := 2; slices.Contains(taken, word); n++ {
			word = fmt.Sprintf("%s-%d", slug(name), n)
		}
		taken = append(taken, word)
		other := New(Config{
			DB: d.DB, NATS: d.NATS, JS: d.JS, Stream: d.Stream, Name: name, Path: c.config.Path + "/db/" + word, Hosts: c.config.Hosts, ReadOnly: c.config.ReadOnly,
			User: func(r *http.Request) string { return c.config.User(r) }, Own: c.config.Own, Log: c.log.With("database", name),
		})
		c.others = append(c.others, other)
	}
	for _, other := range c.others {
		other.first = c
	}
}

// slug returns a name as a part of a URL.
func slug(name string) string {
	text := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '-'
	}, name)
	if text == "" {
		return "other"
	}
	return text
}

// other returns the console that serves r; nil if it is c.
func (c *Console) other(r *http.Request) *Console {
	i := slices.IndexFunc(c.others, func(o *Console) bool { return strings.HasPrefix(r.URL.Path, o.config.Path+"/") })
	if i < 0 {
		return nil
	}
	return c.others[i]
}

// A databaseLink links to the same page of a database.
type databaseLink struct {
	Name    string
	URL     string
	Current bool
}

// databases returns the databases to choose from; none if there is only one.
func (c *Console) databases(r *http.Request) (all []databaseLink) {
	first := c
	if c.first != nil {
		first = c.first
	}
	if len(first.others) == 0 {
		return nil
	}
	part, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/") // an id belongs to one database
	if !slices.Contains([]string{"events", "consumers", "dead", "retrying", "relay", "scheduled", "sagas", "operations", "audit", "types", "processes", "reasons"}, part) {
		part = ""
	}
	for _, one := range append([]*Console{first}, first.others...) {
		all = append(all, databaseLink{one.config.Name, one.config.Path + "/" + part, one == c})
	}
	return all
}
