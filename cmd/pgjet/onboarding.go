package main

import (
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/consumers/onboarding"
	"github.com/pgjet/pgjet/consumers/saga"
)

func consumeOnboardingCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   onboarding.Name,
		Short: "Give each new user a profile and a billing account, and make them active",
		Long: `Give each new user a profile and a billing account, and make them active; or undo
what was done, and reject them. It is a saga: see pgjet saga.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.consume(cmd, onboarding.Name, s.onboardingParts)
		},
	}
	s.consumeFlags(cmd.Flags())
	cmd.Flags().StringVar(&s.profilesURL, "profiles-url", "", "the profiles service, such as http://profiles.example:8080")
	cmd.Flags().StringVar(&s.billingURL, "billing-url", "", "the billing service, such as http://billing.example:8080")
	return cmd
}

// onboardingParts returns what begins the saga, and what runs it.
func (s *settings) onboardingParts(db *pgxpool.Pool, js jetstream.JetStream, log *slog.Logger) ([]part, error) {
	profiles, err := otherService("profiles", "--profiles-url", s.profilesURL)
	if err != nil {
		return nil, err
	}
	billing, err := otherService("billing", "--billing-url", s.billingURL)
	if err != nil {
		return nil, err
	}
	o := onboarding.New(db, profiles, billing)
	r := &saga.Runner{Saga: o.Saga(), DB: db, Log: log}
	return []part{s.consumerPart(o.Consumer(), db, js, log), {"onboarding-saga", r.Run, r.Ready}}, nil
}

// otherService returns the way to another service: the one place that says how.
func otherService(name, flag, address string) (onboarding.Service, error) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" {
		return onboarding.Service{}, usagef("%s or its environment variable is not of the form http://%s.example:8080", flag, name)
	}
	return onboarding.Service{Name: name, HTTP: &http.Client{Timeout: 5 * time.Second}, URL: address}, nil
}
