package events

import (
	"time"

	"github.com/google/uuid"
)

// UserCreated announces that somebody signed up.
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

// UserRenamed announces that a user has another name.
type UserRenamed struct {
	UserID    string    `json:"user_id"`
	Name      string    `json:"name"`
	RenamedAt time.Time `json:"renamed_at"`
}

// EventType returns "user.renamed".
func (UserRenamed) EventType() string { return "user.renamed" }

// EventKey returns the user's id.
func (e UserRenamed) EventKey() string { return e.UserID }

// UserActivated announces that a user's account is complete.
type UserActivated struct {
	UserID      string    `json:"user_id"`
	ActivatedAt time.Time `json:"activated_at"`
}

// EventType returns "user.activated".
func (UserActivated) EventType() string { return "user.activated" }

// EventKey returns the user's id.
func (e UserActivated) EventKey() string { return e.UserID }

// UserRejected announces that a user cannot have an account, and why.
type UserRejected struct {
	UserID     string    `json:"user_id"`
	Email      string    `json:"email"`
	Name       string    `json:"name"`
	Reason     string    `json:"reason"` // a stable code, such as billing_declined
	RejectedAt time.Time `json:"rejected_at"`
}

// EventType returns "user.rejected".
func (UserRejected) EventType() string { return "user.rejected" }

// EventKey returns the user's id.
func (e UserRejected) EventKey() string { return e.UserID }

// UserStillPending announces that a user has waited for long, and is neither active nor
// rejected. It is scheduled at the sign-up, with the id that [ReminderID] returns, and
// cancelled when the wait ends.
type UserStillPending struct {
	UserID    string    `json:"user_id"`
	Email     string    `json:"email"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"` // when the user signed up
}

// EventType returns "user.still_pending".
func (UserStillPending) EventType() string { return "user.still_pending" }

// EventKey returns the user's id.
func (e UserStillPending) EventKey() string { return e.UserID }

// ReminderID returns the id of a user's event user.still_pending. A user has at most one,
// and whoever knows the user can cancel it. The id is a UUIDv7 with the time of the user's
// id.
func ReminderID(user uuid.UUID) uuid.UUID {
	id := uuid.NewSHA1(user, []byte(UserStillPending{}.EventType()))
	copy(id[:6], user[:6])
	id[6] = id[6]&0x0f | 0x70
	return id
}

// UserDeleted announces that a user is gone, and what the service knew of them.
type UserDeleted struct {
	UserID    string    `json:"user_id"`
	DeletedAt time.Time `json:"deleted_at"`
}

// EventType returns "user.deleted".
func (UserDeleted) EventType() string { return "user.deleted" }

// EventKey returns the user's id.
func (e UserDeleted) EventKey() string { return e.UserID }
