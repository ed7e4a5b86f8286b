package devservices

import (
	"net/http"
	"sync"
	"unicode/utf8"
)

// A profile is the service's record of a user.
type profile struct {
	UserID string `json:"user_id"`
	Name   string `json:"name"`
}

type profiles struct {
	file file

	mu  sync.Mutex
	all map[string]profile // by user; a zero one was deleted, for good
}

func (s *server) profiles(f file) error {
	p := &profiles{file: f, all: make(map[string]profile)}
	if err := f.load(&p.all); err != nil {
		return err
	}
	s.handle("PUT /profiles/{user_id}", p.put)
	s.handle("GET /profiles/{user_id}", p.get)
	s.handle("DELETE /profiles/{user_id}", p.delete)
	return nil
}

func (p *profiles) put(w http.ResponseWriter, r *http.Request) error {
	id, err := userID(r.PathValue("user_id"))
	if err != nil {
		return err
	}
	var in struct {
		Name string `json:"name"`
	}
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if n := utf8.RuneCountInString(in.Name); n < 1 || n > 200 {
		return invalid("name", "must have 1 to 200 characters")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	status := http.StatusCreated
	switch had, ok := p.all[id]; {
	case ok && had.UserID == "":
		return &problem{Status: http.StatusConflict, Code: "profile_deleted", Detail: "the profile of this user was deleted"}
	case ok:
		status = http.StatusOK
	}
	p.all[id] = profile{id, in.Name}
	if err := p.file.save(p.all); err != nil {
		return err
	}
	return writeJSON(w, status, p.all[id])
}

func (p *profiles) get(w http.ResponseWriter, r *http.Request) error {
	p.mu.Lock()
	found := p.all[r.PathValue("user_id")]
	p.mu.Unlock()
	if found.UserID == "" {
		return &problem{Status: http.StatusNotFound, Code: "profile_not_found", Detail: "there is no profile of this user"}
	}
	return writeJSON(w, http.StatusOK, found)
}

// delete also keeps a request that is still on its way from making a profile. No other user
// ever gets that id.
func (p *profiles) delete(w http.ResponseWriter, r *http.Request) error {
	id, err := userID(r.PathValue("user_id"))
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[id] = profile{}
	if err := p.file.save(p.all); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
