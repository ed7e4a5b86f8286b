// Package console tests the console in a real browser, on a pgjet dev that it starts. It is
// a package of its own so that no other tests wait for it.
package console
