// Package outbox tests package outbox with servers. Its tests do not stand beside it, because
// go mod tidy of a service that imports a package downloads what the tests of that package import.
// The examples do: program internal/tests/database makes their database.
package outbox
