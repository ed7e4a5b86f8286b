// Database makes a fresh database with pgjet's tables, in which the SQL that its arguments are
// has run, prints the address of the database, and removes it at the end of its input.
//
// It is for the tests of a package that services import. If those tests imported package
// testenv, go mod tidy of each such service would download a NATS server.
package main

import (
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

func main() {
	testenv.Example(func(t testing.TB) {
		fmt.Println(testenv.DatabaseWith(t, os.Args[1:]...))
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			t.Fatal(err)
		}
	})
}
