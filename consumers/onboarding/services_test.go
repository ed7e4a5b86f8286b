package onboarding_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// A request is a request to a service.
type request struct {
	Call, Key, Trace, Body string
}

// fakes are the two other services, which follow their contract.
type fakes struct {
	*testing.T
	profiles, billing *httptest.Server

	mu       sync.Mutex
	requests []request
	names    map[string]string // by user
	accounts map[string]string // account by key
	users    map[string]string // user by account
	opened   int
	// fault, if set, is called before each call, without the lock. If it returns true, it has
	// answered.
	fault func(w http.ResponseWriter, r *http.Request) bool
	// lose, if set, reports whether the answer gets lost after the effect.
	lose func(r *http.Request) bool
}

func newFakes(t *testing.T) *fakes {
	f := &fakes{T: t, names: map[string]string{}, accounts: map[string]string{}, users: map[string]string{}}
	profiles, billing := http.NewServeMux(), http.NewServeMux()
	profiles.HandleFunc("PUT /profiles/{user}", f.putProfile)
	profiles.HandleFunc("DELETE /profiles/{user}", f.deleteProfile)
	billing.HandleFunc("POST /accounts", f.postAccount)
	billing.HandleFunc("DELETE /accounts/{account}", f.deleteAccount)
	billing.HandleFunc("DELETE /accounts", f.deleteAccount)
	f.profiles, f.billing = httptest.NewServer(f.noting("profiles", profiles)), httptest.NewServer(f.noting("billing", billing))
	t.Cleanup(f.profiles.Close)
	t.Cleanup(f.billing.Close)
	return f
}

func (f *fakes) noting(name string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body strings.Builder
		rest := http.MaxBytesReader(w, r.Body, 1<<10)
		var v map[string]string
		if json.NewDecoder(rest).Decode(&v) == nil {
			fmt.Fprint(&body, v)
		}
		f.mu.Lock()
		f.requests = append(f.requests, request{
			fmt.Sprintf("%s %s %s", name, r.Method, r.URL.RequestURI()), r.Header.Get("Idempotency-Key"), r.Header.Get("traceparent"), body.String(),
		})
		fault, lose := f.fault, f.lose
		f.mu.Unlock()
		if r.Header.Get("Idempotency-Key") == "" {
			f.Errorf("%s %s has no Idempotency-Key", r.Method, r.URL)
		}
		r.Header.Set("X-Name", v["name"])
		r.Header.Set("X-User", v["user_id"])
		if fault != nil && fault(w, r) {
			return
		}
		if lose != nil && lose(r) {
			next.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
}

func (f *fakes) putProfile(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names[r.PathValue("user")] = r.Header.Get("X-Name")
	answer(w, http.StatusCreated, map[string]string{"user_id": r.PathValue("user"), "name": r.Header.Get("X-Name")})
}

func (f *fakes) deleteProfile(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.names, r.PathValue("user"))
	w.WriteHeader(http.StatusNoContent)
}

func (f *fakes) postAccount(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := r.Header.Get("Idempotency-Key")
	if f.accounts[key] == "" {
		f.opened++
		f.accounts[key] = fmt.Sprint("acc-", f.opened)
		f.users[f.accounts[key]] = r.Header.Get("X-User")
	}
	answer(w, http.StatusCreated, map[string]string{"account_id": f.accounts[key]})
}

func (f *fakes) deleteAccount(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	account := r.PathValue("account")
	if account == "" {
		account = f.accounts[r.URL.Query().Get("key")]
	}
	delete(f.users, account)
	w.WriteHeader(http.StatusNoContent)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// declined is billing's answer for a refused user.
func declined(w http.ResponseWriter) bool {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusPaymentRequired)
	fmt.Fprint(w, `{"status":402,"code":"declined"}`)
	return true
}

func status(w http.ResponseWriter, code int) bool {
	w.WriteHeader(code)
	return true
}

// set changes the services' behaviour.
func (f *fakes) set(fault func(w http.ResponseWriter, r *http.Request) bool, lose func(r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.lose = fault, lose
}

// calls returns the calls, without repetitions in a row, with the user's id cut.
func (f *fakes) calls(user string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, r := range f.requests {
		call, _, _ := strings.Cut(strings.ReplaceAll(r.Call, user, "U"), "?key=")
		if len(all) == 0 || all[len(all)-1] != call {
			all = append(all, call)
		}
	}
	return strings.Join(all, ", ")
}

// left returns the numbers of profiles and accounts.
func (f *fakes) left() (profiles, accounts int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.names), len(f.users)
}

// keys returns the different keys of calls that begin with a prefix.
func (f *fakes) keys(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]bool{}
	for _, r := range f.requests {
		if strings.HasPrefix(r.Call, prefix) {
			all[r.Key] = true
		}
	}
	return len(all)
}
