// Package producer is the user service: HTTP in, a row and its event out.
//
//   - POST /users signs somebody up. The row in users.users and the event user.created in
//     the outbox commit in one transaction: there is never one without the other. NATS is
//     not involved. It also schedules user.still_pending, which is cancelled when the user
//     becomes active, is rejected or deleted.
//   - GET /users lists users by pages, the newest first. For admins.
//   - GET, PATCH and DELETE /users/{id} return, rename and delete a user. Each change
//     appends its event, user.renamed or user.deleted, in its transaction. Users see and
//     rename themselves, admins everybody; only admins delete.
//   - POST /sessions logs in: it returns a short-lived access token, a JWT.
//   - PUT /users/{id}/password changes one's own password, for the current one.
//   - GET /.well-known/jwks.json has the public keys that tokens verify with.
//   - GET /users/{id}/profile returns what the profiles service knows of a user, unless the
//     feature flag profiles is off.
//   - GET /openapi.json and /openapi.yaml describe the API (OpenAPI 3.1), GET /docs shows
//     that to people, who can try requests out there, with all problem codes.
//
// # Answers
//
// Every refusal is a [Problem] (RFC 9457, application/problem+json) with a stable code. It
// names the field that is wrong and never repeats its value. 400 says that the API cannot
// read the body: no JSON object, an unknown or duplicate field, a wrong type. 422 says that
// a value breaks a rule. 503 comes with Retry-After and promises that nothing was stored,
// except with the code outcome_unknown: there the connection broke while PostgreSQL was
// committing.
//
// For a caller without the right to see a user, that user does not exist: GET and PATCH answer 404 as
// they do for an unknown id.
//
// # Pages
//
// A page has limit users, 50 by default and 200 at most. Its field next, and a Link header,
// say where the next page begins; the last page has none. A page begins behind the last
// user of the page before, who may be gone by then. So a user who exists all the time is
// listed once, and users who sign up meanwhile belong to earlier pages. A next that was not
// made here is refused: cursor_invalid.
//
// # Versions
//
// Each change counts the version of a user up; their ETag is the version. With
// If-None-Match, GET answers 304 if the client has that version. With If-Match, PATCH and
// DELETE change that version or nothing: 412, changed_meanwhile. Without it, the last
// change wins. A change to the name that the user already has changes nothing, not even the
// version.
//
// # Signing up once
//
// A sign-up may carry an Idempotency-Key, random and of its own: 1 to 255 visible ASCII
// characters without comma, semicolon and backslash, bare or in double quotes. A client
// that gets no answer sends the same request again, as often as it likes. There will be one
// user and one event, and each later answer of success repeats the first one, marked with
// Idempotent-Replayed. The answer is stored in the sign-up's transaction, so this holds for
// outcome_unknown, too.
//
//   - While the first request is under way, in this process or another one, or in
//     PostgreSQL after its process is gone: 409, request_in_flight, with Retry-After.
//   - If the address, the name or the password is another: 422, idempotency_mismatch. The
//     password is compared by its argon2id hash; no quicker hash of it is stored.
//   - Refusals are not stored: the corrected request may have the same key.
//
// Answers are kept for a day, and as long as their user. A sign-up with a key drops up to
// ten that are older; without such sign-ups they stay, and are not used.
//
// # Passwords
//
// A password is kept as an argon2id hash only, and is normalised to Unicode NFC first, so
// that it does not depend on the keyboard. No more hashes run at a time than there are
// processors; a client that waits too long for a turn is asked to try again. Logging in
// with an unknown address costs the same hash and gets the same answer as with a wrong
// password. A log-in renews a hash that was made with other parameters.
//
// A password has 12 to 256 characters and is not one that attackers try first: common
// words, rows of keys, repetitions, years, and the user's own name and address count as one
// character each, and 8 must remain (password_common). Whoever changes their password gives
// the current one; wrong ones count as failed log-ins. All their tokens end.
//
// # Access tokens
//
// A token stands in the header Authorization, alone, and is verified by package
// internal/auth. A request without a valid one is answered with 401 token_invalid; the
// reason is in the log at level debug.
//
// A token shows the state at the log-in, so each operation that needs one also reads the
// row of its user, in the same transaction or round trip. A user who was deleted, or has
// changed the password, gets 401 token_invalid. A rejected user gets 403 account_rejected,
// and one who is no longer an admin gets 403 forbidden for an admin's action. That holds at
// once, although the token is still valid. Services that verify tokens by themselves accept
// it until it expires.
//
// # Overload
//
// The service refuses at once what it cannot do in time, so that the rest is as fast as
// ever. A request passes five bounds; [Tuning] has their sizes:
//
//   - 429 rate_limited, with the time after which to try again: sign-ups of one network
//     address (IPv4, or the /64 of IPv6), and those with one mail address from there;
//     log-ins that failed, counted in the same way. After some failures in a row with one
//     mail address from one network address, each further log-in has to wait twice as long
//     as the one before. From elsewhere the right password always works, so no one can lock
//     a user out.
//   - 503 overloaded: requests of one operation that run at a time. The bound follows how
//     long they take; a few more wait for a quarter of a second.
//   - 503 busy: passwords that are hashed at a time, and transactions, which leave a
//     quarter of the pool's connections to reads.
//   - Every request has 5 s, and 5 s more for its body to arrive.
//   - A body has 64 KiB, and 512 of one operation arrive at a time: 503 overloaded.
//
// A refused request has changed nothing. Behind a proxy, set Server.Proxies, or all clients
// count as one.
//
// # Traces and logs
//
// Each event that matters to security is one line, "security event": log-ins, changes of a
// password, refused tokens, what was forbidden, limits, and what admins change. It has the
// id of the user, the outcome, the trace and the network (/24 of IPv4, /64 of IPv6), and
// never an address. For events that a stranger can repeat, five lines of each kind and
// network are logged in ten seconds; a line at the end counts the others. pgjet.operation
// also records what an admin changes.
//
// Requests continue the trace of an incoming traceparent, and every answer but 503
// overloaded carries the traceparent of its server span. Log lines and spans hold the
// route, never a path, an address, a name, a password or a payload. A failure is logged
// once.
//
// # Files
//
// The package is large because it is a whole service; nothing else imports it but the program.
//
//   - signup.go, sessions.go, change.go, changepassword.go, list.go, profile.go, users.go: one
//     operation each, with roles.go and authorize.go for who may call it.
//   - rules.go, name.go, password.go, body.go: what a user may enter.
//   - producer.go, serve.go, problem.go, codes.go, faults.go, etag.go, idempotency.go, requestid.go,
//     docs.go: what all requests and answers have in common.
//   - admission.go, gate.go, ratelimit.go, loginfailures.go, address.go, tuning.go: limits.
//   - cache.go, database.go: reading from memory and from PostgreSQL.
//   - observe.go, security.go, telemetry.go: logs, spans and metrics.
package producer
