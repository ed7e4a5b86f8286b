// Package guide does what docs/guide says: it makes each file, types each command, and compares what they print.
package guide
