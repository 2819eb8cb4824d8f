// Package replay runs a scenario file on a real lab, in real time.
//
// The lab is brought up from the scenario's cluster; the scenario's clock
// starts when it is up. Steps are done at their times, expectations are judged
// beside later steps, and the observer watches throughout, whatever the
// scenario expects.
package replay
