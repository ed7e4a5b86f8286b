package events

import "time"

// UserCreated says that somebody signed up.
type UserCreated struct {
	UserID    string    `json:"user_id"`
	Email     string    `json:"email"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// EventType returns "user.created".
func (UserCreated) EventType() string { return "user.created" }

// EventKey returns the user's id.
func (e UserCreated) EventKey() string { return e.UserID }
