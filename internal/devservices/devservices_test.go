package devservices_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/testenv"
)

const (
	ann      = "/profiles/0198a0f2-0000-7000-8000-000000000001"
	bob      = "/profiles/0198a0f2-0000-7000-8000-000000000002"
	annID    = "0198a0f2-0000-7000-8000-000000000001"
	patience = 20 * time.Second
)

func start(t *testing.T, name, dir string) string {
	t.Helper()
	h, err := devservices.New(name, dir, testenv.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// ask makes a request whose answer must have that status, and returns its body.
func ask(t *testing.T, want int, method, url, body string, key ...string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if len(key) > 0 {
		req.Header.Set("Idempotency-Key", key[0])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != want {
		t.Errorf("%s %s %.60s = %d %s, want %d", method, url, body, res.StatusCode, b, want)
	}
	if res.StatusCode >= 400 && res.StatusCode != http.StatusMethodNotAllowed && !strings.Contains(string(b), `"code":"`) {
		t.Errorf("%s %s is refused without a code: %s", method, url, b)
	}
	return string(b)
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := start(t, devservices.Profiles, dir)
	ask(t, 404, "GET", at+ann, "")
	ask(t, 204, "DELETE", at+bob, "")
	ask(t, 409, "PUT", at+bob, `{"name":"Bob"}`) // came late
	ask(t, 422, "DELETE", at+"/profiles/bob", "")
	want := `{"user_id":"` + annID + `","name":"Ann"}` + "\n"
	for _, status := range []int{201, 200} {
		if got := ask(t, status, "PUT", at+ann, `{"name":"Ann"}`); got != want {
			t.Errorf("PUT = %s, want %s", got, want)
		}
	}
	at = start(t, devservices.Profiles, dir) // it has been kept
	if got := ask(t, 200, "GET", at+ann, ""); got != want {
		t.Errorf("GET = %s, want %s", got, want)
	}
	for range 2 {
		ask(t, 204, "DELETE", at+ann, "")
		ask(t, 404, "GET", at+ann, "")
		at = start(t, devservices.Profiles, dir)
		ask(t, 409, "PUT", at+ann, `{"name":"Ann"}`)
		ask(t, 404, "GET", at+ann, "")
	}
	ask(t, 200, "GET", at+"/livez", "")
	for _, row := range []struct {
		path, body string
		want       int
	}{
		{"/profiles/ann", `{"name":"Ann"}`, 422},
		{"/profiles/" + strings.ToUpper(annID), `{"name":"Ann"}`, 422},
		{ann, `{"name":""}`, 422},
		{ann, `{"name":"` + strings.Repeat("x", 201) + `"}`, 422},
		{ann, `{"name":"` + strings.Repeat("x", 8<<10) + `"}`, 413},
		{ann, `{"name":"Ann","age":7}`, 400},
		{ann, `{"name":"Ann"}{}`, 400},
		{ann, `{"name":7}`, 400},
		{ann, ``, 400},
	} {
		ask(t, row.want, "PUT", at+row.path, row.body)
	}
}

func TestBilling(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := start(t, devservices.Billing, dir)
	body := `{"user_id":"` + annID + `"}`
	other := `{"user_id":"0198a0f2-0000-7000-8000-000000000002"}`
	open := func(key string) (id string) {
		var a struct {
			ID string `json:"account_id"`
		}
		if err := json.Unmarshal([]byte(ask(t, 201, "POST", at+"/accounts", body, key)), &a); err != nil || a.ID == "" {
			t.Fatalf("no account: %v", err)
		}
		return a.ID
	}
	accounts := func(n int) {
		t.Helper()
		if got := ask(t, 200, "GET", at+"/accounts?user_id="+annID, ""); strings.Count(got, "account_id") != n || !strings.HasPrefix(got, `{"accounts":[`) {
			t.Errorf("accounts are %s, want %d", got, n)
		}
	}
	accounts(0)
	first := open("k1")
	at = start(t, devservices.Billing, dir) // it has been kept
	if again := open("k1"); again != first {
		t.Errorf("the same key opens %s and %s", first, again)
	}
	ask(t, 422, "POST", at+"/accounts", other, "k1")
	if open("k2") == first {
		t.Error("another key opens the same account")
	}
	accounts(2)
	for range 2 {
		ask(t, 204, "DELETE", at+"/accounts/"+first, "")
		ask(t, 204, "DELETE", at+"/accounts?key=k2", "")
		ask(t, 204, "DELETE", at+"/accounts?key=k3", "")
	}
	accounts(0)
	ask(t, 409, "POST", at+"/accounts", body, "k3") // came late
	accounts(0)
	ask(t, 400, "POST", at+"/accounts", body)
	ask(t, 400, "POST", at+"/accounts", body, strings.Repeat("k", 256))
	ask(t, 422, "POST", at+"/accounts", `{"user_id":"ann"}`, "k4")
	ask(t, 422, "DELETE", at+"/accounts", "")
	ask(t, 422, "GET", at+"/accounts", "")
}

func TestFaults(t *testing.T) {
	t.Parallel()
	at := start(t, devservices.Profiles, t.TempDir())
	if got := ask(t, 200, "GET", at+"/fault", ""); got != "{}\n" {
		t.Errorf("no fault is %s", got)
	}
	ask(t, 200, "PUT", at+"/fault", `{"status":503,"count":2}`)
	ask(t, 503, "PUT", at+ann, `{"name":"Ann"}`)
	if got := ask(t, 200, "GET", at+"/fault", ""); got != `{"status":503,"count":1}`+"\n" {
		t.Errorf("one fault is left: %s", got)
	}
	ask(t, 200, "GET", at+"/livez", "")
	ask(t, 503, "GET", at+ann, "")
	ask(t, 404, "GET", at+ann, "") // the first was not carried out
	ask(t, 200, "PUT", at+"/fault", `{"status":402}`)
	for range 5 {
		if got := ask(t, 402, "GET", at+ann, ""); strings.Contains(got, "declined") {
			t.Errorf("profiles declines: %s", got)
		}
	}
	ask(t, 204, "DELETE", at+"/fault", "")
	ask(t, 404, "GET", at+ann, "")
	ask(t, 200, "PUT", at+"/fault", `{"delay":"50ms","count":1}`)
	begun := time.Now()
	if ask(t, 201, "PUT", at+ann, `{"name":"Ann"}`); time.Since(begun) < 50*time.Millisecond {
		t.Error("it was not late")
	}
	billing := start(t, devservices.Billing, t.TempDir())
	ask(t, 200, "PUT", billing+"/fault", `{"status":402,"count":1}`)
	if got := ask(t, 402, "POST", billing+"/accounts", `{"user_id":"`+annID+`"}`, "k"); !strings.Contains(got, `"code":"declined"`) {
		t.Errorf("billing declines with %s", got)
	}
	ask(t, 201, "POST", billing+"/accounts", `{"user_id":"`+annID+`"}`, "k") // a request may be repeated
}

// TestWorkGoesOn: a request is carried out even if its client does not wait for the answer.
func TestWorkGoesOn(t *testing.T) {
	t.Parallel()
	at := start(t, devservices.Profiles, t.TempDir())
	ask(t, 200, "PUT", at+"/fault", `{"delay":"300ms","count":1}`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "PUT", at+ann, strings.NewReader(`{"name":"Ann"}`))
	if err != nil {
		t.Fatal(err)
	}
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
		t.Fatal("it answers in time")
	}
	testenv.Eventually(t, patience, "the profile is there", func() bool {
		res, err := http.Get(at + ann)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

func TestOtherNamesAndBrokenState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := devservices.New("shipping", dir, testenv.Logger(t)); err == nil {
		t.Error("there is a stand-in for shipping")
	}
	if err := os.WriteFile(filepath.Join(dir, "profiles.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := devservices.New(devservices.Profiles, dir, testenv.Logger(t)); err == nil || !strings.Contains(err.Error(), "profiles.json") {
		t.Errorf("a broken state: %v", err)
	}
}
