package attempt

// An UnavailableError marks an error as an outage of a service that calls need: it does not
// count as an attempt.
type UnavailableError struct {
	text string
	err  error
}

// Unavailable returns err as an [UnavailableError], with its current text. A nil error is
// an outage, too.
func Unavailable(err error) error {
	if err == nil {
		return &UnavailableError{text: "unavailable"}
	}
	return &UnavailableError{Bounded("unavailable: " + err.Error()), err}
}

// Error returns the text of the error behind the word unavailable.
func (e *UnavailableError) Error() string { return e.text }

// Unwrap returns the error that was given to [Unavailable].
func (e *UnavailableError) Unwrap() error { return e.err }
