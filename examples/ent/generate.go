// Package ent is made by ent from the package schema.
package ent

// The feature sql/execquery lets outbox.AppendSQL use a transaction of ent.
//go:generate go run entgo.io/ent/cmd/ent generate --feature sql/execquery ./schema
