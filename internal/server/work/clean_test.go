package work

import (
	"testing"
	"time"
)

func TestHistoryIsKeptForAnHour(t *testing.T) {
	t0 := time.Unix(1000, 0)
	var marks []mark
	for i := range 200 { // one each minute
		now := t0.Add(time.Duration(i) * time.Minute)
		marks = append(marks, mark{now, int64(10 * i)})
		old, rest := before(marks, now.Add(-keepHistory))
		marks = rest
		if want := max(0, int64(10*(i-60))); old != want {
			t.Fatalf("after %d minutes the history before revision %d is dropped, want %d", i, old, want)
		}
		if len(marks) > 60 {
			t.Fatalf("%d marks", len(marks))
		}
	}
}
