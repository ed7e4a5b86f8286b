// Package devserver runs a PostgreSQL server and a NATS server on 127.0.0.1 for development
// and tests. Nothing in it is meant for production. Without a password, anyone who can
// reach the machine's loopback interface may do anything in both servers.
//
// [StartPostgres] runs the PostgreSQL programs that it finds, or downloads, as a child of
// this process; [StartNATS] runs NATS inside this process. Both keep their data in a
// directory of the caller, so that the next start goes on with it, and both end with this
// process, however it ends: on Linux a child does not outlive even a parent that was
// killed.
//
// The package reads no flags and no variables of its own. The user's choices are in
// [PostgresOptions] and [NATSOptions].
package devserver
