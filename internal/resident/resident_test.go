package resident

import (
	"os"
	"strings"
	"testing"
)

// Every page of the program that may be read is in memory afterwards.
func TestLoadProgram(t *testing.T) {
	if err := loadProgram(); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	seen, size, ours := 0, "", false
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		switch {
		case strings.Contains(f[0], "-") && len(f) >= 5:
			ours = strings.HasSuffix(strings.TrimSpace(line), exe) && f[1] != "rw-p" // written pages may have been replaced
		case ours && f[0] == "Size:":
			size = f[1]
		case ours && f[0] == "Rss:":
			if seen++; f[1] != size {
				t.Errorf("%s of %s KiB are in memory", f[1], size)
			}
		}
	}
	if seen < 2 {
		t.Errorf("%d mappings of %s", seen, exe)
	}
}

func TestMapped(t *testing.T) {
	maps := "00400000-00521000 r-xp 00000000 fe:00 1234 /usr/bin/hanok guard\n" +
		"00521000-00700000 r--p 00121000 fe:00 1234 /usr/bin/hanok guard\n" +
		"00700000-00701000 ---p 00121000 fe:00 1234 /usr/bin/hanok guard\n" +
		"c000000000-c000400000 rw-p 00000000 00:00 0\n" +
		"7f0000000000-7f0000001000 r-xp 00000000 fe:00 99 /lib/other\n"
	got, err := mapped(strings.NewReader(maps), "/usr/bin/hanok guard")
	if err != nil || len(got) != 2 || got[0] != (span{0x400000, 0x521000}) || got[1] != (span{0x521000, 0x700000}) {
		t.Errorf("got %x, %v", got, err)
	}
	if _, err := mapped(strings.NewReader("x-y r-xp 0 0 0 f\n"), "f"); err == nil {
		t.Error("nonsense was taken")
	}
}
