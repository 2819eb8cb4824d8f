// Package drill rehearses failures in a lab: it asks the cluster and the
// processes for the truth, waits until a cluster has settled, and times what a
// failure costs. The demo, the benchmarks and the end-to-end tests share it.
package drill
