package main

import (
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/supervisor"
)

func consumeOnboardingCommand() *cobra.Command {
	var s processSettings
	cmd := &cobra.Command{
		Use:   onboarding.Name,
		Short: "Give each new user a profile and a billing account, and activate the user",
		Long: `Give each new user a profile and a billing account, and activate the user; or undo what was
done, and reject the user. It is a saga: see pgjet saga.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.consume(cmd, onboarding.Name, s.onboardingParts)
		},
	}
	s.consumeFlags(cmd.Flags())
	s.serviceFlags(cmd.Flags(), devservices.Profiles, devservices.Billing)
	return cmd
}

// onboardingParts returns the consumer that starts the sagas, and the runner of the sagas.
func (s *processSettings) onboardingParts(db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) ([]part, error) {
	profiles, err := s.otherService(devservices.Profiles, log)
	if err != nil {
		return nil, err
	}
	billing, err := s.otherService(devservices.Billing, log)
	if err != nil {
		return nil, err
	}
	o := onboarding.New(db, profiles, billing)
	r := &saga.Runner{Saga: o.Saga(), DB: db, Log: log}
	return []part{
		s.consumerPart(o.Consumer(), db, js, log),
		supervisor.Of("onboarding-saga", r),
	}, nil
}

// otherService returns the client of another service.
func (s *processSettings) otherService(name string, log *slog.Logger) (onboarding.Service, error) {
	client, err := s.serviceClient(name, log)
	if err != nil {
		return onboarding.Service{}, err
	}
	return onboarding.Service{Name: name, HTTP: client.HTTP(), URL: "http://" + name}, nil
}
