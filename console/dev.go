package console

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/pgjet/pgjet/internal/operate"
)

// A Dev describes the additions of a development set-up: a form that signs a user up, and switches
// that break things.
type Dev struct {
	Inbox  string                                                               // address of the page that shows mails
	Docs   string                                                               // address of the description of the API
	SignUp func(ctx context.Context, email, name string) (id string, err error) // returns the id of the user
	Lab    []Switch
}

// A Switch breaks something, and repairs it.
type Switch struct {
	ID     string // in addresses
	Name   string // such as Mail server refuses for now
	Effect string // what happens, and where to see it
	On     func(ctx context.Context) (broken bool, err error)
	Set    func(ctx context.Context, broken bool) error
}

// A labView is the content of the page Lab.
type labView struct {
	*Dev
	Switches []labSwitch
}

// A labSwitch is a switch and its state.
type labSwitch struct {
	Switch
	Broken bool
	Failed string // why the state is not known
}

func (c *Console) labPage(ctx context.Context, _ *http.Request) (page, error) {
	v := labView{Dev: c.config.Dev}
	for _, s := range c.config.Dev.Lab {
		one := labSwitch{Switch: s}
		var err error
		if one.Broken, err = s.On(ctx); err != nil {
			one.Failed = err.Error()
		}
		v.Switches = append(v.Switches, one)
	}
	return page{Title: "Lab", Template: "lab.html", Content: v}, nil
}

// setSwitch breaks or repairs what a switch controls.
func (c *Console) setSwitch(ctx context.Context, r *http.Request) (next, notice string, err error) {
	i := slices.IndexFunc(c.config.Dev.Lab, func(s Switch) bool { return s.ID == r.PathValue("id") })
	if i < 0 {
		return "", "", wrongf("there is no such switch")
	}
	s, broken := c.config.Dev.Lab[i], r.PostFormValue("do") == "break"
	notice = "Repaired. Not so any more: " + s.Name + "."
	if broken {
		notice = "Broken: " + s.Name + "."
	}
	return "/lab", notice, s.Set(ctx, broken)
}

// signUp signs a user up. It leads to the page of the event.
func (c *Console) signUp(ctx context.Context, r *http.Request) (next, notice string, err error) {
	email, name := strings.TrimSpace(r.PostFormValue("email")), strings.TrimSpace(r.PostFormValue("name"))
	id, err := c.config.Dev.SignUp(ctx, email, name)
	if err != nil {
		return "", "", wrongf("the user service refuses: %s", operate.Plain(err.Error()))
	}
	all, _, err := c.facts().Find(ctx, id)
	if err != nil || len(all) == 0 {
		return "/keys" + query("key", id), "Signed up.", nil //nolint:nilerr // the page of the key shows the error
	}
	return "/events/" + all[0].ID.String(), "Signed up. This is the event that the user service appended, in the transaction of the sign-up.", nil
}
