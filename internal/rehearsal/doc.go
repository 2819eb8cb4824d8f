// Package rehearsal is the question what would happen if hosts of a cluster
// failed now: each loss is played in virtual time (package sim), and nothing is
// touched. The command line and the server ask it.
package rehearsal
