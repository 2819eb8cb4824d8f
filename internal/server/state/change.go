package state

import (
	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/store"
)

// Change is a change of the state as a stream tells it.
type Change struct {
	// Kind is cluster, config, host, vm, datastore or task.
	Kind, Cluster, Name string
	Removed             bool
	// Task and VM are the object, for those kinds.
	Task *hanokv1.Task
	VM   *hanokv1.VM
}

// ChangeOf reads a change of the store; nil for what no stream tells.
func ChangeOf(e store.Event) *Change {
	kind, p := split(e.Key)
	if len(p) == 0 {
		return nil
	}
	c := &Change{Kind: kind, Cluster: p[0], Name: p[len(p)-1], Removed: e.Deleted}
	switch kind {
	case kindCluster, kindConfig, kindForeign:
		if kind != kindConfig {
			c.Removed = false // the cluster itself is still there, or its config goes as well
			c.Kind = kindCluster
		}
		return c
	case kindHost, kindDatastore:
		return c
	case kindVM:
		if !e.Deleted {
			v, err := Decode[hanokv1.VM](e.Key, e.Value)
			if err != nil {
				return nil
			}
			c.VM = v
		}
		return c
	case kindTask:
		c.Cluster = ""
		if !e.Deleted {
			t, err := Decode[hanokv1.Task](e.Key, e.Value)
			if err != nil {
				return nil
			}
			c.Task, c.Cluster = t, t.Cluster
		}
		return c
	}
	return nil
}

// Ended reports whether a task is over.
func Ended(t *hanokv1.Task) bool {
	switch t.State {
	case hanokv1.TaskState_TASK_STATE_SUCCEEDED, hanokv1.TaskState_TASK_STATE_FAILED, hanokv1.TaskState_TASK_STATE_CANCELLED:
		return true
	}
	return false
}
