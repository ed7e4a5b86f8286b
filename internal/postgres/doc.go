// Package postgres opens connections that depend on no setting of a role, a database or a
// pooler, and that change nothing for other clients.
//
// At start-up, every connection pins the parameters that a pooler tracks for each of its
// clients: client_encoding, TimeZone, DateStyle, standard_conforming_strings and
// application_name. The first statement then finds out whether the connection has a server
// process of its own: the server reports the same process id as the handshake.
//
//   - On such a direct connection the same statement sets the time-outs, the defaults of
//     transactions and synchronous_commit for as long as the connection lives.
//   - On a pooled connection nothing is set, and no statement gets a name. A [DB] and
//     [Transaction] set the same for each transaction, in the round trip that begins it.
//
// Code that needs a session of its own, for example for a session advisory lock, uses
// [Connect], which refuses a pooler with a [PoolerError].
package postgres
