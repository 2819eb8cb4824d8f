package state

import (
	"slices"
	"strings"
)

// table holds objects by key and gives them in an order, which is made when it
// is asked for and was broken.
type table[T any] struct {
	items map[string]T
	order []T
	names []string // of order
	valid bool
}

func (t *table[T]) set(key string, v T) {
	if t.items == nil {
		t.items = map[string]T{}
	}
	t.items[key] = v
	t.valid = false
}

func (t *table[T]) drop(key string) {
	delete(t.items, key)
	t.valid = false
}

// sorted are the objects after a name of the order.
func (t *table[T]) sorted(name func(T) string, after string) []T {
	if !t.valid {
		type named struct {
			name string
			v    T
		}
		all := make([]named, 0, len(t.items))
		for _, v := range t.items {
			all = append(all, named{name(v), v})
		}
		slices.SortFunc(all, func(a, b named) int { return strings.Compare(a.name, b.name) })
		t.order, t.names = make([]T, len(all)), make([]string, len(all))
		for i, n := range all {
			t.order[i], t.names[i] = n.v, n.name
		}
		t.valid = true
	}
	i, found := slices.BinarySearch(t.names, after)
	if found {
		i++
	}
	return t.order[i:]
}
