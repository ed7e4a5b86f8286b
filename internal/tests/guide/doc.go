// Package guide follows docs/guide: it makes each file, types each command, and compares
// the output.
package guide
