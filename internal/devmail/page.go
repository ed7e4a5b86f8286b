package devmail

import (
	"bytes"
	"embed"
	"html/template"
	"net/http"
	"time"
)

//go:embed web
var files embed.FS

var pageTemplate = template.Must(template.New("page.html").
	Funcs(template.FuncMap{"when": when}).
	ParseFS(files, "web/page.html"))

// A view is the content of the page.
type view struct {
	Version string // of Mails
	Mails   []Mail
	Open    *Mail // nil: none
	Gone    bool  // the mail asked for is not there
}

// page shows the list and the mail asked for, if any.
func (s *Server) page(w http.ResponseWriter, r *http.Request) error {
	var v view
	v.Mails, v.Version = s.box.list()
	status := http.StatusOK
	if id := r.PathValue("id"); id != "" {
		if m, ok := find(v.Mails, id); ok {
			v.Open = &m
		} else {
			v.Gone, status = true, http.StatusNotFound
		}
	}
	var out bytes.Buffer
	if err := pageTemplate.Execute(&out, v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = out.WriteTo(w) // a reader that has left needs no answer
	return nil
}

// when formats a time for a reader nearby: today's without the date.
func when(t time.Time) string {
	t = t.Local()
	if t.Format(time.DateOnly) == time.Now().Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("2 Jan 2006, 15:04")
}

func asset(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, files, "web/"+name)
	}
}
