package main

import "testing"

// TestFinds: the programs compile, bugs that are found in moments are found, and the
// code without them passes. `make sim-mutants` is about all of them.
func TestFinds(t *testing.T) {
	o := options{seeds: 100, clean: 3}
	if err := o.prove("../..", []string{"start-without-lock", "lease-from-the-answer", "no-silence", "honour-an-old-note", "copy-nothing"}); err != nil {
		t.Error(err)
	}
	if err := o.prove("../..", []string{"no-such-bug"}); err == nil {
		t.Error("a mutant that is not there is found")
	}
}
