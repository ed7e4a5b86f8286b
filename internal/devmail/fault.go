package devmail

import "sync"

// A fault makes the next Count sends fail with Code. The zero fault is none.
type fault struct {
	Code  int `json:"code"`
	Count int `json:"count"`
}

// faults holds the one fault in force. The zero value is ready.
type faults struct {
	mu  sync.Mutex
	now fault
}

// set replaces the fault in force; a count of 0 clears it.
func (f *faults) set(next fault) {
	if next.Count == 0 {
		next = fault{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = next
}

// left returns what is still to come.
func (f *faults) left() fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// take uses up one failure and returns its SMTP code, 0 if there is none.
func (f *faults) take() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	code := f.now.Code
	if f.now.Count--; f.now.Count <= 0 {
		f.now = fault{}
	}
	return code
}
