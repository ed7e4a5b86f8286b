// Package saga runs steps that cannot share a transaction, such as calls of other services, and
// undoes the done ones if not all can be done.
//
// A [Definition] lists steps with their undos. [Definition.Start] begins a saga in a transaction,
// usually that of an event's handler, so that it begins once however often the event is delivered.
// A [Runner] runs sagas until they have ended:
//
//   - All or nothing. Either every step is done, or all done steps are undone in reverse
//     order, and then [Definition.Rejected] is called. A step that was given up and may still
//     have happened is undone, too: after a deadline, a crash, or a refusal that was not
//     the answer to the first attempt.
//   - Local steps once. What a step writes in its transaction commits together with the saga's
//     progress. The same holds for local undos and for Rejected.
//   - Outside steps at least once. The attempt is committed before the call, and
//     its outcome after it. A crash in between repeats only that one
//     call, with the same [Saga.DoKey].
//   - One process at a time. An attempt gives a process the saga for twice
//     [Definition.Timeout] and 5 s; if the process dies, others go on after that. Each change
//     of a saga increases its epoch. A process with an older epoch cannot change the saga any more, nor begin
//     a call. Only a call that it sent before it froze may still arrive; the
//     receiver should recognise its key.
//   - To an end. A step that fails [Definition.MaxAttempts] times is given up. An undo that
//     fails [Definition.MaxUndos] times needs an operator, who corrects the cause and lets it
//     go on by pgjet saga retry.
//   - Patient. [Unavailable] spends no attempt. An outage of the database costs a
//     saga at most the attempt that it interrupts.
//
// The steps do not run inside the consumer that starts the saga: its attempt is one transaction,
// while a saga may last for days and has to record its progress after every step. So a runner has a
// loop of its own, in the same process or in others. The consumer needs the stream; the runner
// needs only the database.
//
// A saga stores its begun steps by name and position. A program whose steps differ from those
// leaves the saga to a program with the same steps. So a step may be appended at the end at any
// time. Elsewhere, steps may be added or removed only while no saga is running.
//
// The input of a saga, its results and its errors are kept in pgjet.saga, and operators see them:
// names of people, addresses and secrets belong elsewhere, where the step can look them up.
package saga
