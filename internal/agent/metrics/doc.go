// Package metrics shows a host's status as Prometheus metrics.
//
// The guard has no network: its figures come through the agent. What is known
// of the whole cluster is shown by the primary only, so that a sum over all
// hosts counts each VM once. Tables is the documented list; docs/metrics.md and
// a test keep to it.
package metrics
