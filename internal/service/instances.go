package service

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"
)

// avoidFor is how long an instance that failed is avoided, if there are others.
const avoidFor = 5 * time.Second

var (
	errNotFound = errors.New("nobody to ask")
	errNobody   = errors.New("no instance is known, and no URL is configured")
)

// An instances holds the instances of one service, which take turns.
type instances struct {
	name string
	find Finder // nil: there is only the URL

	mu       sync.Mutex
	turn     int
	failedAt map[string]time.Time // by host
}

// pick returns the address of the instance whose turn it is. It prefers those that have not
// failed lately.
func (i *instances) pick(ctx context.Context, fallback string) (*url.URL, error) {
	all, err := i.addresses(ctx, fallback)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.turn++
	for n := range all {
		if at := all[(i.turn+n)%len(all)]; time.Since(i.failedAt[at.Host]) >= avoidFor {
			return at, nil
		}
	}
	return all[i.turn%len(all)], nil
}

// addresses returns at least one address: those of live instances; if there are none, or
// the registry is away, the fallback; without a fallback, the last known ones.
func (i *instances) addresses(ctx context.Context, fallback string) ([]*url.URL, error) {
	var found []string
	err := errNobody
	if i.find != nil {
		var away error
		if found, away = i.find(ctx, i.name); away != nil {
			err = away
			if fallback != "" {
				found = nil
			}
		}
	}
	if len(found) == 0 && fallback != "" {
		found = []string{fallback}
	}
	var all []*url.URL
	for _, address := range found {
		u, invalid := url.Parse(address)
		if invalid == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
			all = append(all, u)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: %w", errNotFound, err)
	}
	return all, nil
}

func (i *instances) failed(host string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failedAt == nil {
		i.failedAt = make(map[string]time.Time)
	}
	i.failedAt[host] = time.Now()
	for h, at := range i.failedAt { // those that are gone
		if time.Since(at) >= avoidFor {
			delete(i.failedAt, h)
		}
	}
}

func (i *instances) answered(host string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.failedAt, host)
}
