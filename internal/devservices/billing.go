package devservices

import (
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/google/uuid"
)

// An account belongs to a user.
type account struct {
	AccountID string `json:"account_id"`
	UserID    string `json:"user_id"`
}

type billing struct {
	file file

	mu    sync.Mutex
	state ledger
}

// A ledger is the stored state. Keys are kept for ever.
type ledger struct {
	Accounts map[string]account `json:"accounts"` // by id
	Keys     map[string]account `json:"keys"`     // the account that each key opened; without an id: none, and it never will
}

func (s *server) billing(f file) error {
	b := &billing{file: f, state: ledger{make(map[string]account), make(map[string]account)}}
	if err := f.load(&b.state); err != nil {
		return err
	}
	s.handle("POST /accounts", b.open)
	s.handle("GET /accounts", b.list)
	s.handle("DELETE /accounts", b.closeByKey)
	s.handle("DELETE /accounts/{account_id}", b.close)
	return nil
}

func (b *billing) open(w http.ResponseWriter, r *http.Request) error {
	key := r.Header.Get("Idempotency-Key")
	if key == "" || len(key) > 255 {
		return &problem{Status: http.StatusBadRequest, Code: "idempotency_key_required", Detail: "the header Idempotency-Key must have 1 to 255 characters"}
	}
	var in struct {
		UserID string `json:"user_id"`
	}
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	id, err := userID(in.UserID)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a, again := b.state.Keys[key]
	switch {
	case again && a.AccountID == "":
		return &problem{Status: http.StatusConflict, Code: "key_deleted", Detail: "what was asked for with this Idempotency-Key was taken back"}
	case again && a.UserID != id:
		return &problem{Status: http.StatusUnprocessableEntity, Code: "key_reused", Detail: "this Idempotency-Key was used for something else"}
	case !again:
		a = account{uuid.NewString(), id}
		b.state.Accounts[a.AccountID], b.state.Keys[key] = a, a
		if err := b.file.save(b.state); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusCreated, a)
}

func (b *billing) list(w http.ResponseWriter, r *http.Request) error {
	id, err := userID(r.FormValue("user_id"))
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	found := slices.DeleteFunc(slices.Collect(maps.Values(b.state.Accounts)), func(a account) bool { return a.UserID != id })
	if found == nil {
		found = []account{}
	}
	return writeJSON(w, http.StatusOK, map[string][]account{"accounts": found})
}

func (b *billing) close(w http.ResponseWriter, r *http.Request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.remove(w, r.PathValue("account_id"))
}

// closeByKey also keeps a request that is still on its way from opening an account.
func (b *billing) closeByKey(w http.ResponseWriter, r *http.Request) error {
	key := r.FormValue("key")
	if key == "" {
		return invalid("key", "is missing")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id := b.state.Keys[key].AccountID
	b.state.Keys[key] = account{}
	return b.remove(w, id)
}

func (b *billing) remove(w http.ResponseWriter, id string) error {
	delete(b.state.Accounts, id)
	if err := b.file.save(b.state); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
