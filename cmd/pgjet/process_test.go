package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestWaitReadyTellsTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		soon := func(context.Context) error {
			if asked++; asked < 3 {
				return errors.New("not yet")
			}
			return nil
		}
		if err := waitReady(t.Context(), []part{{Name: "a"}, {Name: "b", Ready: soon}}); err != nil {
			t.Errorf("waitReady() = %v, want nil", err)
		}
		never := func(context.Context) error { return errors.New("no tables") }
		err := waitReady(t.Context(), []part{{Name: "b", Ready: soon}, {Name: "c", Ready: never}})
		if err == nil || err.Error() != "c did not become ready: no tables" {
			t.Errorf("waitReady() = %v, want what c said last", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := waitReady(ctx, []part{{Name: "c", Ready: never}}); err != nil {
			t.Errorf("waitReady() = %v after an interrupt, want nil", err)
		}
	})
}
