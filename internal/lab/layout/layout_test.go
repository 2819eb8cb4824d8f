package layout

import "testing"

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"lab": true, "a": true, "ci-12": true, "sixteen-letters1": true,
		"": false, "Lab": false, "-a": false, "a-": false, "a/b": false, "..": false, "seventeen-letters": false,
	} {
		if _, err := New(name); (err == nil) != ok {
			t.Errorf("New(%q): %v", name, err)
		}
	}
}

func TestLabsShareNothing(t *testing.T) {
	a, _ := New("a")
	b, _ := New("b")
	for _, f := range []func(Lab) string{Lab.RunDir, Lab.DataDir, Lab.Cgroup, Lab.Socket,
		func(l Lab) string { return l.HostDir("h") }, func(l Lab) string { return l.Backing("d") }} {
		if f(a) == f(b) {
			t.Errorf("both labs use %s", f(a))
		}
	}
}
