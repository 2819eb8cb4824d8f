// Package placement answers where a VM should run, and if nowhere, why.
//
// It is pure. This first form knows memory and datastores; the full library
// will answer the same question behind the same types.
package placement

import (
	"fmt"
	"sort"

	"hanok.dev/hanok/internal/model"
)

// Host is what placement knows of a host that might take a VM.
type Host struct {
	Name model.HostID
	// Memory is the capacity, Used what running and reserved VMs take.
	Memory, Used model.MiB
	Datastores   []model.DatastoreName
	// Starting is the number of starts under way, Limit the most allowed.
	Starting, Limit int
	// Unfit is why the host takes no VM at all, for people; "" if it may.
	Unfit string
	// Failed counts how often this VM failed to start here lately.
	Failed int
}

// VM is what placement knows of a VM to be placed.
type VM struct {
	Name       string
	Memory     model.MiB
	Datastores []model.DatastoreName
}

// Refusal says why one host cannot take a VM.
type Refusal struct {
	Host   model.HostID
	Reason string
}

// Place returns the host that should run vm: among those that can take it, one
// where it failed least, then the one with the most free memory, ties by name.
// When none can, host is "" and refusals has one reason for each host, in
// order of names. busy is true when some refusal will pass by itself, as a
// start that is under way ends.
func Place(vm VM, hosts []Host) (host model.HostID, refusals []Refusal, busy bool) {
	order := append([]Host(nil), hosts...)
	sort.Slice(order, func(i, j int) bool { return order[i].Name < order[j].Name })
	best := -1
	for i, h := range order {
		if reason := refuse(vm, h); reason != "" {
			refusals = append(refusals, Refusal{h.Name, reason})
			continue
		}
		if h.Limit > 0 && h.Starting >= h.Limit {
			busy = true
			refusals = append(refusals, Refusal{h.Name, fmt.Sprintf("%d starts under way, the limit is %d", h.Starting, h.Limit)})
			continue
		}
		if best < 0 || better(h, order[best]) {
			best = i
		}
	}
	if best < 0 {
		return "", refusals, busy
	}
	return order[best].Name, nil, false
}

func better(a, b Host) bool {
	if a.Failed != b.Failed {
		return a.Failed < b.Failed
	}
	return a.Memory-a.Used > b.Memory-b.Used
}

func refuse(vm VM, h Host) string {
	if h.Unfit != "" {
		return h.Unfit
	}
	for _, need := range vm.Datastores {
		if !has(h.Datastores, need) {
			return fmt.Sprintf("does not reach datastore %s", need)
		}
	}
	if free := h.Memory - h.Used; free < vm.Memory {
		return fmt.Sprintf("%d MiB free of %d MiB, %d MiB needed", max(free, 0), h.Memory, vm.Memory)
	}
	return ""
}

func has(list []model.DatastoreName, d model.DatastoreName) bool {
	for _, x := range list {
		if x == d {
			return true
		}
	}
	return false
}
