package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/internal/devservices"
	remote "github.com/pgjet/pgjet/internal/service"
	"github.com/pgjet/pgjet/producer"
)

// sections returns the parts of the configuration that may change while a process runs.
func sections(cmd *cobra.Command) []config.Section {
	users := producer.DefaultTuning()
	if strings.HasPrefix(cmd.CommandPath(), "pgjet dev") {
		users.PerAddress, users.NetworkFailures = 0, 0 // all clients have the same address
		users.RemindAfter = time.Minute
	}
	return []config.Section{
		{Name: "users", Default: users},
		{Name: "services." + devservices.Profiles, Default: remote.DefaultTuning()},
		{Name: "services." + devservices.Billing, Default: remote.DefaultTuning()},
		{Name: "flags", Default: map[string]bool{"profiles": true}},
	}
}

// secrets are the flags whose values may hold a password.
var secrets = []string{"database-url", "direct-database-url", "nats-url", "smtp-url"}

// A configuration holds the sources of the configuration of one command, and its values at the
// start.
type configuration struct {
	schema *config.Schema
	file   string
	given  []config.Value // set by flags, and by their environment variables
	first  *config.Config
}

func (c *configuration) load() (*config.Config, error) {
	return c.schema.Load(c.file, os.Environ(), c.given)
}

// create writes a file with the defaults unless it exists, and loads it. It does nothing if another
// file was named.
func (c *configuration) create(file string) error {
	if c.file != "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(c.schema.Write(f), f.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write the configuration: %w; choose another directory with --dir", err)
	}
	c.file = file
	if c.first, err = c.load(); err != nil {
		return &exitError{exitUsage, err}
	}
	return nil
}

// configurationKey is the context key of a command's configuration.
type configurationKey struct{}

func configured(ctx context.Context) *configuration {
	return ctx.Value(configurationKey{}).(*configuration) // configure runs before every command
}

// configure loads the configuration of cmd. It sets the flags that the command line does not set:
// from the environment, else from the file.
func configure(cmd *cobra.Command) error {
	c := &configuration{schema: config.NewSchema(processKeys(cmd), sections(cmd)...).With(relaysGroup(cmd))}
	cmd.SetContext(context.WithValue(cmd.Context(), configurationKey{}, c))
	onCommandLine := make(map[string]bool)
	cmd.Flags().Visit(func(f *pflag.Flag) { onCommandLine[f.Name] = true })
	if err := fromEnvironment(cmd.Flags(), os.Getenv); err != nil {
		return err
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		origin := variable(f.Name)
		if onCommandLine[f.Name] {
			origin = "--" + f.Name
		}
		c.given = append(c.given, config.Value{Key: key(f.Name), Text: flagText(f), Origin: origin})
	})
	c.file = configFile(cmd)
	if cmd.HasParent() && cmd.Parent().Name() == "config" {
		return nil // these commands report what is wrong with it
	}
	var err error
	if c.first, err = c.load(); err != nil {
		return &exitError{exitUsage, err}
	}
	return fromFile(cmd.Flags(), c.first)
}

// configFile returns the name of the configuration file of cmd, or "".
func configFile(cmd *cobra.Command) string {
	file := cmd.Flag("config").Value.String()
	if file != "" || cmd.CommandPath() != "pgjet dev" {
		return file
	}
	file = filepath.Join(cmd.Flag("dir").Value.String(), "pgjet.yaml")
	if _, err := os.Lstat(file); err != nil {
		return ""
	}
	return file
}

// fromEnvironment sets each flag that the command line does not set from its variable: --nats-url
// from PGJET_NATS_URL.
func fromEnvironment(f *pflag.FlagSet, getenv func(string) string) error {
	var errs []error
	f.VisitAll(func(flag *pflag.Flag) {
		name := variable(flag.Name)
		if value := getenv(name); value != "" && !flag.Changed {
			if err := f.Set(flag.Name, value); err != nil {
				errs = append(errs, usagef("environment variable %s: %w", name, err))
			}
		}
	})
	return errors.Join(errs...)
}

// fromFile sets the flags that neither the command line nor the environment sets.
func fromFile(f *pflag.FlagSet, c *config.Config) error {
	var errs []error
	f.VisitAll(func(flag *pflag.Flag) {
		if v, ok := c.Lookup(key(flag.Name)); ok && !flag.Changed {
			if err := f.Set(flag.Name, v.Text); err != nil {
				errs = append(errs, usagef("%s: %s: %w", v.Origin, v.Key, err))
			}
		}
	})
	return errors.Join(errs...)
}

func key(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

func variable(flag string) string { return "PGJET_" + strings.ToUpper(key(flag)) }

// processes returns the commands below cmd that run until they are stopped: those with --log-level.
func processes(cmd *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, c := range cmd.Commands() {
		if c.LocalFlags().Lookup("log-level") != nil && cmd.Name() != "config" {
			all = append(all, c)
		}
		all = append(all, processes(c)...)
	}
	return all
}

// visitKeys calls fn with each flag that is a configuration key: the flags of processes, and those
// of pgjet stream ensure.
func visitKeys(root *cobra.Command, fn func(process string, f *pflag.Flag)) {
	ensure, _, err := root.Find([]string{"stream", "ensure"})
	if err != nil {
		panic(err) // there is no such command
	}
	for _, c := range append(processes(root), ensure) { // creates the stream that processes share
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !slices.Contains([]string{"config", "dir", "help", "json", "output", "relay", "take-from"}, f.Name) {
				fn(strings.TrimPrefix(c.CommandPath(), "pgjet "), f)
			}
		})
	}
}

// processKeys returns the configuration keys that are flags. One file serves all processes, so it
// may contain the keys of every process.
func processKeys(cmd *cobra.Command) []config.Key {
	var keys []config.Key
	visitKeys(cmd.Root(), func(process string, f *pflag.Flag) {
		i := slices.IndexFunc(keys, func(k config.Key) bool { return k.Name == key(f.Name) })
		if i < 0 {
			keys = append(keys, flagKey(cmd, f))
		} else if shown := shownDefault(f); shown != keys[i].Default && !strings.Contains(keys[i].Note, shown) {
			keys[i].Note += fmt.Sprintf("; %s: %s", process, shown)
		}
	})
	return keys
}

func flagKey(cmd *cobra.Command, f *pflag.Flag) config.Key {
	k := config.Key{
		Name: key(f.Name), Default: shownDefault(f), Usage: f.Usage,
		Secret: slices.Contains(secrets, f.Name), Live: f.Name == "log-level",
		Used: cmd.Flags().Lookup(f.Name) != nil || cmd.HasParent() && cmd.Parent().Name() == "config",
	}
	if own := cmd.Flags().Lookup(f.Name); own != nil {
		k.Default = shownDefault(own)
	}
	k.Want, _ = parsedAs(f)
	k.Parse = func(text string) (string, error) {
		_, v := parsedAs(f)
		parsed := &pflag.Flag{Name: f.Name, Value: v}
		if err := parsed.Value.Set(text); err != nil {
			return "", err
		}
		return flagText(parsed), nil
	}
	return k
}

// parsedAs describes the values that a flag takes, and returns a new one of that type: parsing a key
// must not change the flag.
func parsedAs(f *pflag.Flag) (want string, v pflag.Value) {
	var fresh pflag.FlagSet
	switch v := f.Value.(type) {
	case *checkedText:
		return v.want, &checkedText{new(string), v.check, v.want}
	case *byteSize:
		return "a size such as 10GiB", new(byteSize)
	}
	switch f.Value.Type() {
	case "duration":
		want = "a duration such as 500ms"
		fresh.Duration(f.Name, 0, "")
	case "int":
		want = "a whole number"
		fresh.Int(f.Name, 0, "")
	case "float64":
		want = "a number"
		fresh.Float64(f.Name, 0, "")
	case "bool":
		want = "true or false"
		fresh.Bool(f.Name, false, "")
	case "stringSlice":
		want = "text, several joined by commas"
		fresh.StringSlice(f.Name, nil, "")
	case "string":
		want = "text"
		fresh.String(f.Name, "", "")
	default: // --log-level
		want = "debug, info, warn or error"
		fresh.TextVar(new(slog.Level), f.Name, slog.LevelInfo, "")
	}
	return want, fresh.Lookup(f.Name).Value
}

// flagText returns the value of a flag as it is typed.
func flagText(f *pflag.Flag) string {
	if many, ok := f.Value.(pflag.SliceValue); ok {
		return strings.Join(many.GetSlice(), ",")
	}
	return typedLevel(f, f.Value.String())
}

// shownDefault returns the default of a flag as it is typed.
func shownDefault(f *pflag.Flag) string {
	if _, ok := f.Value.(pflag.SliceValue); ok {
		return strings.Trim(f.DefValue, "[]")
	}
	return typedLevel(f, f.DefValue)
}

// typedLevel returns a log level in lower case, as it is typed.
func typedLevel(f *pflag.Flag, text string) string {
	if f.Name == "log-level" {
		return strings.ToLower(text)
	}
	return text
}
