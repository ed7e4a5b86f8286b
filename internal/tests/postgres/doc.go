// Package postgres tests package internal/postgres with servers. Its tests do not stand beside it,
// for the reason that package internal/tests/outbox gives.
package postgres
