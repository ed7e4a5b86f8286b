package protocol

import (
	"context"
	"errors"
)

// Retry publishes events whose quarantine an operator ended, and returns how many.
func (s *Session) Retry(ctx context.Context) (int, error) {
	records, err := s.DB.Retries(ctx)
	if err != nil || len(records) == 0 {
		return 0, err
	}
	// The append before them is confirmed first, so that no checkpoint falls between an
	// event and the end of its quarantine. And the stream may have other limits by now.
	if err := s.Confirm(ctx); err != nil {
		return 0, err
	}
	if _, err := s.Stream.State(ctx); err != nil {
		return 0, err
	}
	for n, r := range records {
		if !s.mark.Position.Covers(r) {
			continue // it is published when it has been read
		}
		if reason := s.unfit(r); reason != nil {
			if err := s.quarantine(ctx, r, reason); err != nil {
				return n, err
			}
			continue
		}
		if err := s.add(ctx, r); err != nil {
			return n, err
		}
		if err := errors.Join(s.send(ctx), s.Confirm(ctx)); err != nil {
			return n, err
		}
		if err := s.DB.Release(ctx, []int64{r.Event.Seq}); err != nil {
			return n, err
		}
		s.aside.Add(r.Event.Seq) // it may still be read
	}
	s.mark.Seq, s.mark.ID = s.last, s.lastID
	s.dirty = true
	return len(records), nil
}
