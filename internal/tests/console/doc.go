// Package console tests the console in a real browser, on a pgjet dev that it starts. It is apart so that the tests of no other
// package wait for it.
package console
