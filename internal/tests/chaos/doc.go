// Package chaos disturbs a relay and its servers while a writer appends. It kills, freezes, cuts off
// and fills them, and compares the stream with the outbox afterwards. It is a package of its own so
// that other tests of the program do not wait for it.
package chaos
