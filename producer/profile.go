package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"unicode/utf8"

	"github.com/open-feature/go-sdk/openfeature"
)

const (
	maxProfile     = 16 << 10 // bytes of an answer of the profiles service
	maxProfileName = 1000     // bytes
)

// errProfilesAway says that the profiles service gave no usable answer.
var errProfilesAway = errors.New("no profile from the profiles service")

// A Profile is a user's record in the profiles service.
type Profile struct {
	UserID string `json:"user_id" format:"uuid"`
	Name   string `json:"name"`
}

type getProfileOutput struct{ Body Profile }

// getProfile asks the profiles service only about users that getUser shows to the caller.
// The answer is kept like the lists: a change of the user makes it stale.
func (s *Server) getProfile(ctx context.Context, in *getUserInput) (*getProfileOutput, error) {
	if !s.feature(ctx, "profiles") || s.Profiles == nil {
		return nil, newProblem(http.StatusNotFound, "feature_off", "Profiles are switched off.")
	}
	id, err := s.ownUser(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.mayActOn(ctx, id.String()); err != nil {
		return nil, err
	}
	p, err := cached(ctx, s.cache, profileRead, id.String(), func(ctx context.Context) (Profile, error) {
		if _, err := s.findUser(ctx, id); err != nil {
			return Profile{}, err
		}
		return s.findProfile(ctx, id.String())
	})
	if err != nil {
		return nil, err
	}
	return &getProfileOutput{Body: p}, nil
}

// feature reports whether a feature is on. It is on by default.
func (s *Server) feature(ctx context.Context, flag string) bool {
	on, _ := s.flags.BooleanValue(ctx, flag, true, openfeature.EvaluationContext{}) // on error it is the default
	return on
}

// findProfile returns the profile of the user with this id, which is a UUID.
func (s *Server) findProfile(ctx context.Context, id string) (Profile, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://profiles/profiles/"+id, nil)
	if err != nil {
		return Profile{}, fmt.Errorf("ask for a profile: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	res, err := s.Profiles.Do(req)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // it names the path
	}
	if err != nil {
		return Profile{}, fmt.Errorf("%w: %w", errProfilesAway, err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		return readProfile(res.Body, id)
	case http.StatusNotFound:
		return Profile{}, newProblem(http.StatusNotFound, "profile_not_found", "This user has no profile.")
	}
	return Profile{}, fmt.Errorf("%w: it answers %d", errProfilesAway, res.StatusCode)
}

// readProfile checks everything in another service's answer.
func readProfile(body io.Reader, id string) (Profile, error) {
	b, err := io.ReadAll(io.LimitReader(body, maxProfile+1))
	if err != nil {
		return Profile{}, fmt.Errorf("%w: %w", errProfilesAway, err)
	}
	var p Profile
	switch {
	case len(b) > maxProfile:
		err = errors.New("its answer is too long")
	case json.Unmarshal(b, &p) != nil:
		err = errors.New("its answer is not the JSON of a profile")
	case p.UserID != id:
		err = errors.New("its answer is of another user")
	case p.Name == "" || len(p.Name) > maxProfileName || !utf8.ValidString(p.Name):
		err = errors.New("its answer has no name, or none that can be")
	}
	if err != nil {
		return Profile{}, fmt.Errorf("%w: %w", errProfilesAway, err)
	}
	return p, nil
}
