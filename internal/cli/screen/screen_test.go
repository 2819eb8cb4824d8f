package screen

import (
	"os"
	"strings"
	"testing"
)

func TestColumns(t *testing.T) {
	for s, want := range map[string]int{"": 0, "host1": 5, "호스트": 6, "host1: 유지보수": 15, "서버 → 3대": 10, "日本": 4, "Ａ": 2, "é": 1, "한": 2, "e\u0301": 1, "a\u200bb": 2} {
		if got := Columns(s); got != want {
			t.Errorf("Columns(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestWhatIsNoTerminal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if IsTerminal(f) || IsTerminal(strings.NewReader("")) || IsTerminal(nil) {
		t.Error("a file or nothing is taken for a terminal")
	}
}
