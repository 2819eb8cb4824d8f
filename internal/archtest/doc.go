// Package archtest holds the tests that keep the architecture: which package
// may import what. It has no code of its own.
package archtest
