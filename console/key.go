package console

import (
	"context"
	"net/http"
	"net/url"

	"github.com/pgjet/pgjet/internal/operate"
)

// A keyView is the content of the page about a key.
type keyView struct {
	operate.Key
	At []keyAt
}

// A keyAt is the state of the key at one consumer, and what would free it.
type keyAt struct {
	operate.KeyAt
	First   int64  // the dead letter that blocks the others; 0 if none
	Redrive string // URLs of plans
	Discard string
}

func (c *Console) keyPage(ctx context.Context, r *http.Request) (page, error) {
	key := r.URL.Query().Get("key")
	p := page{Title: "Key", Template: "key.html", Command: "pgjet key " + operate.Word(key)}
	if key == "" {
		p.Command, p.Still = "", true
		p.Content = (*keyView)(nil)
		return p, nil
	}
	k, err := c.facts().OfKey(ctx, key)
	if err != nil {
		return p, err
	}
	v := &keyView{Key: k}
	for _, at := range k.Consumers {
		one := keyAt{KeyAt: at}
		if len(at.Dead) > 0 {
			one.First = at.Dead[0].Letter
			own := url.Values{"consumer": {at.Consumer}, "key": {key}}
			one.Redrive, one.Discard = planOf(operate.Redrive, own), planOf(operate.Discard, own)
		}
		v.At = append(v.At, one)
	}
	p.Content = v
	return p, nil
}
