package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/memprovider"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/producer"
)

// logger returns the logger of a process. Its level follows the configuration.
func (s *processSettings) logger(cmd *cobra.Command) *slog.Logger {
	log := newLogger(cmd.ErrOrStderr(), &s.level)
	s.follow(configured(cmd.Context()), log)
	return log
}

// follow sets s.live from c, and s.level from its log level.
func (s *processSettings) follow(c *configuration, log *slog.Logger) {
	s.level.Set(s.logLevel)
	s.live = config.NewLive(c.first, c.load, log)
	s.live.Subscribe(func(_, now *config.Config) {
		var level slog.Level
		v, _ := now.Lookup("log_level")
		if level.UnmarshalText([]byte(v.Text)) == nil { // load accepts valid levels only
			s.level.Set(level)
		}
	})
}

// configPart returns the part that follows the configuration file. SIGHUP makes it reload at once,
// except on a terminal: there SIGHUP ends the process.
func (s *processSettings) configPart() part {
	return part{Name: "configuration", Run: func(ctx context.Context) error {
		ask := make(chan os.Signal, 1)
		if s.live.Current().File() != "" && !terminal(os.Stdin) {
			signal.Notify(ask, syscall.SIGHUP)
			defer signal.Stop(ask)
		}
		return s.live.Run(ctx, ask)
	}}
}

// tune applies the tuning and the feature flags of the configuration to the user service, now and
// after each change.
func (s *processSettings) tune(api *producer.Server) error {
	flags := memprovider.NewInMemoryProvider(featureFlags(s.live.Current()))
	if err := openfeature.SetProviderAndWait(flags); err != nil {
		return fmt.Errorf("set the feature flags: %w", err)
	}
	api.Tune(config.Get[producer.Tuning](s.live.Current(), "users"))
	s.live.Subscribe(func(old, now *config.Config) {
		if t := config.Get[producer.Tuning](now, "users"); t != config.Get[producer.Tuning](old, "users") {
			api.Tune(t)
		}
		flags.UpdateFlags(featureFlags(now))
	})
	return nil
}

func featureFlags(c *config.Config) map[string]memprovider.InMemoryFlag {
	all := make(map[string]memprovider.InMemoryFlag)
	for name, on := range config.Get[map[string]bool](c, "flags") {
		all[name] = memprovider.InMemoryFlag{
			Key: name, State: memprovider.Enabled, DefaultVariant: fmt.Sprint(on),
			Variants: map[string]any{"true": true, "false": false},
		}
	}
	return all
}
