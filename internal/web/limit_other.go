//go:build !unix

package web

import "math"

// descriptorLimit returns how many descriptors this process may have open: here, any number.
func descriptorLimit() int { return math.MaxInt32 }
