//go:build race

package consumers

const raced = true // the race detector makes schedules ten times slower
