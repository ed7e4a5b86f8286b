package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/devservices"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/outbox/hint"
	"github.com/pgjet/pgjet/producer"
)

func (s *processSettings) tokenFlags(f *pflag.FlagSet) {
	f.StringVar(&s.tokenKeyFile, "token-key-file", "", "file with the private key that signs access tokens, such as 'pgjet users key' prints; without, tokens end with the process")
	f.StringVar(&s.tokenJWKSURL, "token-jwks-url", "", "URL of a JWK set whose keys verify access tokens, too")
}

// tokenIssuer returns the signer of access tokens. It logs a warning if its key ends with the
// process, or if others can read it.
func (s *processSettings) tokenIssuer(log *slog.Logger) (*auth.Issuer, error) {
	if s.tokenKeyFile == "" {
		log.Warn("access tokens are signed with a key in memory: they end with this process, and no other process accepts them; see --token-key-file")
		return auth.Generate()
	}
	issuer, err := auth.ReadIssuer(s.tokenKeyFile)
	if errors.Is(err, fs.ErrPermission) {
		return nil, usagef("--token-key-file: %w; the file must be readable for this process's user, whose number is %d", err, os.Geteuid())
	}
	if err != nil {
		return nil, usagef("--token-key-file: %w", err)
	}
	if info, err := os.Stat(s.tokenKeyFile); err == nil && exposed(info) {
		log.Warn("others may read the key that signs access tokens; see chmod", "file", s.tokenKeyFile, "mode", info.Mode().String())
	}
	return issuer, nil
}

// remoteKeys makes api accept tokens signed by the keys at --token-jwks-url, and returns the part
// that refreshes them. The process is ready without them: most requests need no such token.
func (s *processSettings) remoteKeys(api *producer.Server, log *slog.Logger) ([]part, error) {
	if s.tokenJWKSURL == "" {
		return nil, nil
	}
	remote, err := auth.NewRemote(s.tokenJWKSURL, log)
	if err != nil {
		return nil, usagef("--token-jwks-url: %w", err)
	}
	api.Verifier = api.Verifier.With(remote)
	return []part{{Name: "token-keys", Run: remote.Run}}, nil
}

// keepKey writes a new key to path, readable by this process's user only, unless the file exists.
// It reports whether it wrote one.
func keepKey(path string) (made bool, err error) {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	key, err := auth.NewKey()
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(path+".new", key, 0o600); err != nil {
		return false, fmt.Errorf("keep a key: %w", err)
	}
	return true, os.Rename(path+".new", path)
}

func usersKeyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print a new private key for --token-key-file, or write one to a file",
		Long: `Print a new private key for --token-key-file, as a JWK. It belongs in a file that only the
service may read: umask 077; pgjet users key > users.jwk

With --file it is written to that file, readable only by the user who runs this. An existing
file stays as it is, so that the command may run before each start of the service.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file != "" {
				return printKept(cmd.OutOrStdout(), file)
			}
			key, err := auth.NewKey()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", key)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "write the key to this file, unless the file exists")
	return cmd
}

func printKept(out io.Writer, file string) error {
	made, err := keepKey(file)
	switch {
	case err != nil:
		return err
	case made:
		fmt.Fprintf(out, "wrote a new key to %s\n", file)
	default:
		fmt.Fprintf(out, "%s exists and stays as it is\n", file)
	}
	return nil
}

// A roleChange describes pgjet users grant or revoke.
type roleChange struct {
	change func(ctx context.Context, db *pgxpool.Pool, user, role, by, reason string) (uuid.UUID, bool, error)
	done   string // the format of the line, with the id and the role
	none   string // the same, if nothing was changed
}

func (s *settings) usersGrantCommand() *cobra.Command {
	cmd := s.roleCommand(roleChange{
		producer.Grant,
		"%s has the role %s; tokens say so from the next log-in on",
		"%s has the role %s already",
	})
	cmd.Use = "grant USER ROLE"
	cmd.Short = "Give a user a role: admin"
	cmd.Long = `Give a user a role. There is one, admin: it may see, change and delete every user.
USER is an id or a mail address.`
	return cmd
}

func (s *settings) usersRevokeCommand() *cobra.Command {
	cmd := s.roleCommand(roleChange{
		producer.Revoke,
		"%s no longer has the role %s; tokens with it are refused at once where they need it",
		"%s does not have the role %s",
	})
	cmd.Use = "revoke USER ROLE"
	cmd.Short = "Take a role from a user"
	cmd.Long = `Take a role from a user, who is named by id or mail address. The user service looks at the
user's row: it refuses at once what the role allowed, though a token still has it. Other
services that verify tokens by themselves accept it until it expires.`
	return cmd
}

func (s *settings) roleCommand(c roleChange) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("name a user, by id or mail address, and a role: admin")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != auth.Admin {
				return usagef("the role is %q, want %s", args[1], auth.Admin)
			}
			if err := needReason(reason); err != nil {
				return err
			}
			return s.withDatabase(cmd.Context(), func(ctx context.Context, db *pgxpool.Pool) error {
				id, changed, err := c.change(ctx, db, args[0], args[1], actor(), reason)
				switch {
				case errors.Is(err, producer.ErrUnknownUser):
					return &exitError{exitNotFound, errors.New("no user has this id or mail address")}
				case err != nil:
					return err
				case changed:
					return showChanged(cmd, id.String(), true, fmt.Sprintf(c.done, id, args[1]))
				}
				return showChanged(cmd, id.String(), false, fmt.Sprintf(c.none, id, args[1]))
			})
		},
	}
	s.databaseFlag(cmd.Flags())
	reasonFlag(cmd.Flags(), &reason)
	outputFlag(cmd.Flags())
	return cmd
}

func usersCommand() *cobra.Command {
	var s processSettings
	cmd := &cobra.Command{
		Use:   "users",
		Short: "Serve the user service's HTTP API",
		Args:  commandsAlone,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, log := cmd.Context(), s.logger(cmd)
			proxies, err := parseNetworks(s.trustedProxies)
			if err != nil {
				return usagef("--trusted-proxies: %w", err)
			}
			db, err := s.pool(ctx, "pgjet-users")
			if err != nil {
				return err
			}
			defer postgres.Close(db)
			issuer, err := s.tokenIssuer(log)
			if err != nil {
				return err
			}
			api := producer.New(db, issuer, log)
			defer api.Close()
			api.Proxies = proxies
			remoteKeys, err := s.remoteKeys(api, log)
			if err != nil {
				return err
			}
			l, err := listen("users", s.addr, "--addr")
			if err != nil {
				return err
			}
			parts := append([]part{serveHTTP("users", l, api, log), watchDatabase(db, log)}, remoteKeys...)
			if err := s.tune(api); err != nil {
				return err
			}
			if s.natsURL != "" {
				nc, js, err := s.connectWriter(log)
				if err != nil {
					return err
				}
				defer nc.Close()
				api.Committed = hint.New(nc, s.stream).Committed
				parts = append(parts, s.invalidationPart(api, js, log))
				s.registryConn = nc
			}
			profiles, err := s.serviceClient(devservices.Profiles, log)
			if err != nil {
				return err
			}
			api.Profiles, s.served = profiles.HTTP(), l.Addr()
			log.InfoContext(ctx, "serving the API", "addr", "http://"+l.Addr().String())
			return s.serve(ctx, log, "pgjet-users", parts...)
		},
	}
	cmd.AddCommand(usersKeyCommand(), s.usersGrantCommand(), s.usersRevokeCommand())
	f := cmd.Flags()
	s.databaseFlag(f)
	s.tokenFlags(f)
	f.StringVar(&s.addr, "addr", "127.0.0.1:7400", "where to serve the API")
	f.StringSliceVar(&s.trustedProxies, "trusted-proxies", nil, "networks of the proxies before the API, such as 10.0.0.0/8: their X-Forwarded-For counts")
	f.StringVar(&s.natsURL, "nats-url", "", "NATS servers, to notify the relay at once and to see what other processes change; without, the relay polls, and cached answers live for their whole time")
	s.access.flags(f)
	s.streamFlag(f)
	s.prefixFlag(f)
	s.serviceFlags(f, devservices.Profiles)
	s.processFlags(f)
	return cmd
}

// parseNetworks parses networks such as 10.0.0.0/8, and single addresses.
func parseNetworks(all []string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, one := range all {
		network, err := netip.ParsePrefix(one)
		if err != nil {
			addr, err := netip.ParseAddr(one)
			if err != nil {
				return nil, fmt.Errorf("%q is neither a network such as 10.0.0.0/8 nor an address", one)
			}
			network = netip.PrefixFrom(addr, addr.BitLen())
		}
		networks = append(networks, network.Masked())
	}
	return networks, nil
}

// followName is the name of the consumer through which the user service follows the stream.
const followName = "pgjet-users"

// followed returns the feed by which the user service keeps its caches fresh.
func (s *settings) followed() consumers.Feed {
	return consumers.Feed{Stream: s.stream, Prefix: s.prefix, Name: followName, Types: []string{"user.*"}}
}

// invalidationPart returns the part that drops cached answers which other processes made stale.
func (s *settings) invalidationPart(api *producer.Server, js jetstream.JetStream, log *slog.Logger) part {
	return part{Name: "invalidation", Run: func(ctx context.Context) error {
		consumers.Follow(ctx, js, s.followed(), log, func(e events.Event) { api.Changed(e.Key) }, api.Forget)
		return nil
	}}
}
