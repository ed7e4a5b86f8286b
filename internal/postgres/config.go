package postgres

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// tracked are the parameters that poolers track for each of their clients, with their
// values in the server's own spelling: a pooler compares the text.
var tracked = map[string]string{
	"client_encoding":             "UTF8",
	"DateStyle":                   "ISO, MDY",
	"TimeZone":                    "UTC",
	"standard_conforming_strings": "on",
}

// ParseConfig parses a database URL, or keywords and values, for [Open] and [Connect]. It
// pins the settings on which pgjet depends, whatever the URL says. It returns an error,
// which shows no password, for options with which pgjet cannot work.
func ParseConfig(url string) (*pgxpool.Config, error) {
	raw, err := pgx.ParseConfig(url)
	if err == nil {
		err = checkOptions(raw)
	}
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	if err := checkPool(config); err != nil {
		return nil, err
	}
	if _, given := raw.RuntimeParams["pool_max_conns"]; !given {
		config.MaxConns = max(config.MaxConns, defaultConns)
	}
	track(config.ConnConfig)
	return config, nil
}

const (
	// leastConns is how many connections a process with concurrent work needs: one for an
	// attempt or a change, and two for other work meanwhile.
	leastConns = 3
	// defaultConns suits a consumer, which has eight workers and needs some more.
	defaultConns = 12
)

// track pins the tracked parameters, and gives every connection the caches that it may
// need.
func track(config *pgx.ConnConfig) {
	for name, value := range tracked {
		maps.DeleteFunc(config.RuntimeParams, func(n, _ string) bool { return strings.EqualFold(n, name) })
		config.RuntimeParams[name] = value
	}
	for _, pinned := range session() { // a pooler might refuse to pass them on
		maps.DeleteFunc(config.RuntimeParams, func(n, _ string) bool { return strings.EqualFold(n, pinned.Name) })
	}
	if config.StatementCacheCapacity <= 0 && config.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe // the same without names
	}
	if config.DescriptionCacheCapacity <= 0 {
		config.DescriptionCacheCapacity = 512 // the default; pooled connections need one
	}
}

// foreign are options of libpq, or of other versions of pgx, that pgx would send to the
// server as settings, which the server does not know.
var foreign = []string{
	"fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "hostaddr", "keepalives", "keepalives_count",
	"keepalives_idle", "keepalives_interval", "load_balance_hosts", "oauth_client_id", "oauth_client_secret", "oauth_issuer",
	"oauth_scope", "prefer_simple_protocol", "requirepeer", "requiressl", "scram_client_key", "scram_server_key",
	"ssl_max_protocol_version", "ssl_min_protocol_version", "sslcompression", "sslcrl", "sslcrldir", "sslkeylogfile",
	"statement_cache_mode",
}

// checkOptions returns an error for a configuration that cannot work.
func checkOptions(config *pgx.ConnConfig) error {
	if err := checkMode(config.DefaultQueryExecMode); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(config.RuntimeParams)) {
		value := config.RuntimeParams[name]
		switch lower := strings.ToLower(name); {
		case lower == "client_encoding" && !isUTF8(value):
			return fmt.Errorf("client_encoding=%s cannot work, pgjet speaks UTF8; leave client_encoding out", value)
		case lower == "replication" && !slices.Contains([]string{"0", "false", "no", "off"}, strings.ToLower(value)):
			return fmt.Errorf("replication=%s cannot work: such a connection takes no queries; leave replication out", value)
		case slices.Contains(foreign, lower):
			return fmt.Errorf("the option %s is not supported; leave it out", name)
		}
	}
	if session := wantsStandby(config.ValidateConnect); session != "" {
		return fmt.Errorf("target_session_attrs=%s cannot work, pgjet has to write; use read-write, primary or any", session)
	}
	return nil
}

// isUTF8 reports whether PostgreSQL accepts name as UTF8.
func isUTF8(name string) bool {
	plain := strings.NewReplacer("-", "", "_", "", "'", "").Replace(strings.ToLower(name))
	return plain == "utf8" || plain == "unicode"
}

// wantsStandby returns the value of target_session_attrs if it may exclude the primary. The
// value comes from the URL, a service file or the environment; pgx keeps only a function.
func wantsStandby(validate pgconn.ValidateConnectFunc) string {
	for name, f := range map[string]pgconn.ValidateConnectFunc{
		"read-only":      pgconn.ValidateConnectTargetSessionAttrsReadOnly,
		"standby":        pgconn.ValidateConnectTargetSessionAttrsStandby,
		"prefer-standby": pgconn.ValidateConnectTargetSessionAttrsPreferStandby,
	} {
		if validate != nil && reflect.ValueOf(validate).Pointer() == reflect.ValueOf(f).Pointer() {
			return name
		}
	}
	return ""
}

// CheckMode returns an error if pgjet's statements do not work on connections with a
// configuration that [ParseConfig] did not make.
func CheckMode(config *pgx.ConnConfig) error {
	if config.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement && config.StatementCacheCapacity <= 0 {
		return errors.New("statement_cache_capacity=0 cannot work with default_query_exec_mode=cache_statement; use cache_describe, which needs no such cache")
	}
	if config.DefaultQueryExecMode == pgx.QueryExecModeCacheDescribe && config.DescriptionCacheCapacity <= 0 {
		return errors.New("description_cache_capacity=0 cannot work with default_query_exec_mode=cache_describe; leave it out")
	}
	return checkMode(config.DefaultQueryExecMode)
}

func checkMode(mode pgx.QueryExecMode) error {
	if mode != pgx.QueryExecModeExec && mode != pgx.QueryExecModeSimpleProtocol {
		return nil
	}
	name := map[pgx.QueryExecMode]string{pgx.QueryExecModeExec: "exec", pgx.QueryExecModeSimpleProtocol: "simple_protocol"}[mode]
	return fmt.Errorf("default_query_exec_mode=%s cannot work: it does not ask PostgreSQL for the types of parameters; "+
		"use cache_describe, which works through a pooler, or leave it out", name)
}

// checkPool returns an error for a pool that cannot work.
func checkPool(config *pgxpool.Config) error {
	switch {
	case config.MaxConns < leastConns:
		return fmt.Errorf("pool_max_conns=%d is too small, want at least %d", config.MaxConns, leastConns)
	case config.MinConns < 0 || config.MinConns > config.MaxConns:
		return fmt.Errorf("pool_min_conns=%d is not between 0 and pool_max_conns, %d", config.MinConns, config.MaxConns)
	case config.MinIdleConns < 0 || config.MinIdleConns > config.MaxConns:
		return fmt.Errorf("pool_min_idle_conns=%d is not between 0 and pool_max_conns, %d", config.MinIdleConns, config.MaxConns)
	case config.HealthCheckPeriod <= 0:
		return errors.New("pool_health_check_period must be more than 0")
	case config.MaxConnLifetime <= 0:
		return errors.New("pool_max_conn_lifetime must be more than 0")
	case config.MaxConnIdleTime <= 0:
		return errors.New("pool_max_conn_idle_time must be more than 0")
	case config.MaxConnLifetimeJitter < 0:
		return errors.New("pool_max_conn_lifetime_jitter must not be less than 0")
	case config.PingTimeout < 0:
		return errors.New("pool_ping_timeout must not be less than 0")
	}
	return nil
}
