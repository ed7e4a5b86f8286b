// Command bench compares pgjet with its alternatives, and with the limits of PostgreSQL and
// JetStream on the same machine.
//
//	make bench          everything, medians of three rounds, about half an hour
//	make bench-quick    a smaller load, once, up to 3 minutes
//
// or, from this directory:
//
//	go build -o ../bin/bench . && ../bin/bench -list
//	../bin/bench -only drain,latency -rounds 5 -json figures.json -plots plots
//	../bin/bench -doc ../docs/benchmarks.md
//
// It starts its own servers on 127.0.0.1: one PostgreSQL, with fsync and synchronous
// commits, and two NATS servers, each a process of its own. The lazy one lets the system
// decide when to write to disk, as JetStream does by default. The durable one
// (sync_interval: always) has every message on disk before it acknowledges it. Every relay
// and worker is a process of its own, too, so that its CPU time and memory are counted
// separately; on systems other than Linux these are missing. All share the machine: compare
// rows of one run, and little else. Each round of a variant begins with a database and a
// stream of its own, and the variants of a scenario take turns.
//
// Variants on a slow disk have a second PostgreSQL, which runs with a library that makes
// its fsync and fdatasync slow. That library is compiled when it is needed, which takes a C
// compiler, cc, and Linux.
//
// A round that fails is reported as such and the run goes on. Ctrl-C stops everything, and
// prints the results so far.
package main
