package disk

import (
	"bytes"
	"strings"
	"testing"
)

// writer appends as the guest does.
type writer struct {
	image *[]byte
	next  Record
}

// boot looks for the end of the disk and begins the next epoch.
func boot(t *testing.T, image *[]byte) *writer {
	t.Helper()
	last, sum, err := End(bytes.NewReader(*image))
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{image: image, next: Record{Epoch: last.Epoch + 1, Counter: 1, Previous: sum}}
	if last.Epoch > 0 {
		w.next.Slot = last.Slot + 1
	}
	return w
}

func (w *writer) write(n int) {
	for range n {
		w.next.Previous = w.next.Encode((*w.image)[w.next.Slot*Size:])
		w.next.Slot++
		w.next.Counter++
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name string
		run  func(t *testing.T, image *[]byte)
		want string // substring of the only violation kind; empty: intact
	}{
		{"empty disk", func(*testing.T, *[]byte) {}, ""},
		{"one boot", func(t *testing.T, i *[]byte) { boot(t, i).write(10) }, ""},
		{"three boots", func(t *testing.T, i *[]byte) {
			for range 3 {
				boot(t, i).write(7)
			}
		}, ""},
		{"boot that wrote nothing", func(t *testing.T, i *[]byte) { boot(t, i).write(3); boot(t, i); boot(t, i).write(3) }, ""},
		{"torn last record, then a boot", func(t *testing.T, i *[]byte) {
			boot(t, i).write(5)
			(*i)[5*Size-1] ^= 1
			boot(t, i).write(2)
		}, ""},
		{"torn last record", func(t *testing.T, i *[]byte) { boot(t, i).write(5); (*i)[5*Size-1] ^= 1 }, ""},
		{"two writers in turn", func(t *testing.T, i *[]byte) {
			a := boot(t, i)
			a.write(5)
			b := boot(t, i)
			b.write(2)
			a.write(4)
			b.write(1)
		}, "writ"},
		{"late write of the old instance, new one ahead", func(t *testing.T, i *[]byte) {
			a := boot(t, i)
			a.write(5)
			b := boot(t, i)
			b.write(3)
			a.write(1)
		}, "begins with counter 2"},
		{"late write over the tail of the new instance", func(t *testing.T, i *[]byte) {
			a := boot(t, i)
			a.write(5)
			b := boot(t, i)
			b.write(1)
			a.write(2)
		}, ""}, // the new instance lost its only write: shown by the guest's own report, not by the disk
		{"lost write", func(t *testing.T, i *[]byte) { boot(t, i).write(9); clear((*i)[4*Size : 5*Size]) }, "although records follow"},
		{"record in a foreign slot", func(t *testing.T, i *[]byte) { boot(t, i).write(9); copy((*i)[4*Size:], (*i)[2*Size:3*Size]) }, "holds the record of slot 2"},
		{"rolled back and written on", func(t *testing.T, i *[]byte) {
			a := boot(t, i)
			a.write(5)
			old := bytes.Clone(*i)
			boot(t, i).write(4)
			copy((*i)[:6*Size], old[:6*Size])
		}, "although records follow"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			image := make([]byte, 4*chunk)
			tt.run(t, &image)
			r, err := Check(bytes.NewReader(image))
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" && !r.Intact() {
				t.Errorf("violations on an intact disk: %q", r.Violations)
			}
			if tt.want != "" && (r.Intact() || !strings.Contains(strings.Join(r.Violations, "\n"), tt.want)) {
				t.Errorf("violations %q, want one with %q", r.Violations, tt.want)
			}
		})
	}
}
