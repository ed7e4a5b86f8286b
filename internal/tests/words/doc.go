// Package words keeps the comments, names and documents of the project in plain English.
package words
