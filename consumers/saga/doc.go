// Package saga runs steps that no transaction can hold together, such as calls of other
// services, and undoes what was done if they cannot all be.
//
// A [Definition] lists steps with their undos. [Definition.Start] begins a saga in a
// transaction, mostly that of an event's handler, so that it begins once however often the
// event is delivered. A [Runner] runs what is begun until it has ended:
//
//   - All or nothing. Either every step is done, or, in reverse order, all that was done is
//     undone, and then [Definition.Rejected] has the last word. A step that was given up and
//     may have happened all the same is undone, too: after a refusal that was not the answer
//     to the first try, a deadline, or a crash.
//   - Local steps once. What one does in its transaction commits together with the saga's
//     progress. The same holds for local undos and for Rejected.
//   - Outside steps at least once. Before the call it is committed that it is tried, and
//     after it what came of it. A crash at any instruction in between repeats that one
//     call, with the same [Saga.DoKey], and no other.
//   - One process at a time. An attempt gives a process the saga for twice
//     [Definition.Timeout] and 5 s; if it died, others go on then. Each change of a saga
//     makes its epoch grow, and who knows an older one cannot change it any more, nor begin
//     a call. Only one that a process had sent before it froze may still arrive, and should
//     be known by its key.
//   - To an end. A step that fails [Definition.MaxAttempts] times is given up. An undo that
//     fails [Definition.MaxUndos] times needs an operator, who corrects the cause and has it
//     go on by pgjet saga retry.
//   - Patient. What is [Unavailable] spends no attempt. The database being away costs a
//     saga the attempt that it interrupts, at most.
//
// The steps do not run inside the consumer that starts the saga: its attempt is one
// transaction, while a saga may last for days and has to keep its place at every step. So a
// runner has a loop of its own, in the same process or in others. The consumer needs the
// stream, the runner the database alone.
//
// Sagas remember the steps that they have begun by name and place. A program in which
// those are others leaves a saga to one that fits. So a step may be added behind all others
// at any time, and elsewhere, or removed, once no saga is under way.
//
// What a saga was started with, its results and its errors are kept in pgjet.saga, and an
// operator sees them: names of people, addresses and secrets belong elsewhere, where the
// step can look them up.
package saga
