package operate

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Content is the payload and the headers of an event.
type Content struct {
	From    string   `json:"from"` // outbox, stream, or the consumer that has it as a dead letter or a waiting event; "" if it is nowhere any more
	Payload string   `json:"payload"`
	Bytes   int64    `json:"bytes"`
	JSON    bool     `json:"json"`   // otherwise the payload is base64
	Masked  bool     `json:"masked"` // values are left out
	Header  []Header `json:"header"` // by name
}

// A Header is a header of an event.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// hidden replaces a value that is not shown.
const hidden = "•••"

// mostShown is the most bytes of a payload that are read.
const mostShown = 256 << 10

// Content reads the payload and headers of an event from where they still are: the outbox, the
// inboxes of consumers, or the stream. Without reveal, all values of the payload, and of the
// headers that a producer chose, are hidden: any may be personal.
func (s Source) Content(ctx context.Context, e Event, reveal bool) (c Content, err error) {
	if s.DB == nil {
		return c, s.DBErr
	}
	var raw []byte
	header := map[string][]string{}
	if e.Outbox != nil {
		var own map[string]string
		err = s.DB.QueryRow(ctx, `
			select coalesce(convert_to(left(data::text, $3), 'UTF8'), substr(body, 1, $3), ''), coalesce(octet_length(body), octet_length(data::text), 0), coalesce(header, '{}')
			  from pgjet.outbox where seq = $1 and id = $2`, e.Outbox.Seq, e.ID, mostShown).Scan(&raw, &c.Bytes, &own)
		for name, value := range own {
			header[name] = []string{value}
		}
		c.From = "outbox"
	} else {
		err = s.DB.QueryRow(ctx, `
			select consumer, substr(data, 1, $2), octet_length(data), coalesce(header, '{}') from (
				select consumer, data, header from pgjet.dead_letter where consumer = any(array(select name from pgjet.consumer)) and event_id = $1
				union all
				select consumer, data, header from pgjet.intent where consumer = any(array(select name from pgjet.consumer)) and event_id = $1) a
			 limit 1`, e.ID, mostShown).Scan(&c.From, &raw, &c.Bytes, &header)
	}
	switch {
	case err == pgx.ErrNoRows && e.Stored != nil && s.JS != nil: //nolint:errorlint // pgx returns it as it is
		of := s
		of.Stream = e.Stored.Stream
		m, err := of.ReadMessage(ctx, e.Stored.Seq, true)
		if err != nil {
			return c, err
		}
		raw, header, c.Bytes, c.From = append(m.DataBase64, m.Data...), m.Header, int64(m.Bytes), "stream"
	case err == pgx.ErrNoRows: //nolint:errorlint // pgx returns it as it is
		c.From = ""
		return c, nil
	case err != nil:
		return c, sqlstate.Wrap("read an event", err)
	}
	c.Masked = !reveal
	c.setPayload(raw)
	for _, name := range slices.Sorted(maps.Keys(header)) {
		for _, value := range header[name] {
			if c.Masked && !inbox.Public(name) {
				value = hidden
			}
			c.Header = append(c.Header, Header{name, value})
		}
	}
	return c, nil
}

func (c *Content) setPayload(raw []byte) {
	var value any
	c.JSON = utf8.Valid(raw) && json.Unmarshal(raw, &value) == nil
	switch {
	case c.JSON:
		if c.Masked {
			value = masked(value)
		}
		text, err := json.MarshalIndent(value, "", "  ")
		if err == nil {
			c.Payload = string(text)
		}
	case c.Masked:
		c.Payload = hidden
	default:
		c.Payload = base64.StdEncoding.EncodeToString(raw)
	}
}

// masked returns a value with the same fields, whose texts and numbers are hidden.
func masked(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for name := range v {
			v[name] = masked(v[name])
		}
		return v
	case []any:
		for i := range v {
			v[i] = masked(v[i])
		}
		return v
	case nil, bool:
		return v
	}
	return hidden
}
