package console

import (
	"context"
	"net/http"
	"slices"

	"github.com/pgjet/pgjet/docs"
	"github.com/pgjet/pgjet/internal/operate"
)

// A reasonView is the content of the page about one reason, or about all.
type reasonView struct {
	Code     string // "" is all
	Reasons  []operate.Reason
	Runbooks []string // each once
}

func (c *Console) reasonsPage(_ context.Context, r *http.Request) (page, error) {
	v := reasonView{Code: r.PathValue("code"), Reasons: operate.Reasons}
	p := page{Title: "Reasons", Template: "reasons.html", Command: "pgjet explain", Still: true}
	if v.Code != "" {
		p.Title, p.Command = "Reason "+operate.Plain(v.Code), "pgjet explain "+operate.Word(v.Code)
		v.Reasons = slices.DeleteFunc(slices.Clone(v.Reasons), func(r operate.Reason) bool { return r.Code != v.Code })
		if len(v.Reasons) == 0 {
			return p, &operate.NotFoundError{What: "the reason " + operate.Plain(v.Code), Looked: "it is none of those that pgjet explain lists"}
		}
	}
	var read []string
	for _, reason := range v.Reasons {
		if v.Code == "" || reason.Runbook == "" || slices.Contains(read, reason.Runbook) {
			continue
		}
		read = append(read, reason.Runbook)
		if text, err := docs.Runbooks.ReadFile("runbooks/" + reason.Runbook); err == nil { // a test of pgjet explain reads all of them
			v.Runbooks = append(v.Runbooks, string(text))
		}
	}
	p.Content = v
	return p, nil
}
