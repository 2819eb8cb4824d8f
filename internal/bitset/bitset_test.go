package bitset

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A Set does what a map does.
func TestSetIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "n")
		s, o := New(n), New(n)
		in := map[int]bool{}
		other := map[int]bool{}
		draw := func(set Set, m map[int]bool, what string) {
			for _, i := range rapid.SliceOfN(rapid.IntRange(0, n-1), 0, 50).Draw(t, what) {
				set.Put(i, !m[i])
				m[i] = !m[i]
			}
		}
		draw(s, in, "s")
		draw(o, other, "o")
		check := func(s Set, what string, has func(i int) bool) {
			var want []int
			for i := range n {
				if has(i) {
					want = append(want, i)
				}
				if s.Has(i) != has(i) {
					t.Fatalf("%s: Has(%d) is %v", what, i, s.Has(i))
				}
			}
			got := slices.Collect(s.All())
			first := -1
			if len(want) > 0 {
				first = want[0]
			}
			if !slices.Equal(got, want) || s.Count() != len(want) || s.Empty() != (len(want) == 0) || s.First() != first {
				t.Fatalf("%s: %v, count %d, first %d; want %v", what, got, s.Count(), s.First(), want)
			}
		}
		check(s, "s", func(i int) bool { return in[i] })
		check(Full(n), "full", func(int) bool { return true })
		with := func(f func(Set, Set)) Set { c := s.Clone(); f(c, o); return c }
		check(with(Set.Intersect), "intersect", func(i int) bool { return in[i] && other[i] })
		check(with(Set.Subtract), "subtract", func(i int) bool { return in[i] && !other[i] })
		check(with(Set.Union), "union", func(i int) bool { return in[i] || other[i] })
		both := with(Set.Intersect)
		if !both.Within(s) || !both.Within(o) || s.Within(o) != (with(Set.Subtract).Empty()) {
			t.Fatal("Within is wrong")
		}
	})
}
