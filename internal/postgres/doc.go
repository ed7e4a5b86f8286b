// Package postgres opens connections that depend on nothing which a role, a database or
// a pooler may change under them, and that change nothing for anyone else.
//
// Every connection pins at start-up what a pooler tracks for each of its clients:
// client_encoding, TimeZone, DateStyle, standard_conforming_strings and
// application_name. The first statement on a connection then finds out whether it leads
// to a server process of its own: the process id of the handshake is the one that the
// server reports.
//
//   - On such a direct connection the same statement sets the time-outs, the defaults of
//     transactions and synchronous_commit for as long as the connection lives.
//   - On a pooled connection nothing is set, and no statement gets a name. A [DB] and
//     [Transaction] set the same for each transaction, in the round trip that begins it.
//
// Whatever needs a session of its own, such as a session advisory lock, asks for it with
// [Connect], which refuses a pooler with a [PoolerError].
package postgres
