package console

import (
	"context"
	"net/http"

	"github.com/pgjet/pgjet/internal/operate"
)

func (c *Console) processesPage(ctx context.Context, _ *http.Request) (page, error) {
	return page{Title: "Processes", Template: "processes.html", Command: "pgjet services ls", Content: c.board.Status(ctx)}, nil
}

func (c *Console) typesPage(ctx context.Context, _ *http.Request) (page, error) {
	p := page{Title: "Types", Template: "types.html", Command: "pgjet event ls --limit 1000"}
	var t operate.TypeList
	t, err := c.asked().EventTypes(ctx)
	p.Content = t
	return p, err
}
