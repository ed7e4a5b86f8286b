package main

import (
	"math"
	"slices"
)

// median returns the middle one of the values, or the mean of the two in the middle.
// There must be some.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}

// percentile returns the smallest of the sorted values that at least p percent of them
// do not exceed (the nearest rank). There must be some.
func percentile(sorted []float64, p float64) float64 {
	rank := int(math.Ceil(p*float64(len(sorted))/100 - 1e-9)) // 99.9 % of 1000 are 999
	return sorted[min(max(rank, 1), len(sorted))-1]
}
