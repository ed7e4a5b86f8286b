//go:build !race

package consumers

const raced = false
