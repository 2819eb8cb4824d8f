package guard

import (
	"strings"
	"testing"
)

func TestNotInMemory(t *testing.T) {
	if why := notInMemory("/dev/shm"); why != "" {
		t.Errorf("/dev/shm: %s", why)
	}
	if why := notInMemory("/proc"); !strings.Contains(why, "tmpfs") {
		t.Errorf("/proc: %q", why)
	}
	if why := notInMemory("/no/such/directory"); !strings.Contains(why, "not known") {
		t.Errorf("a directory that is not there: %q", why)
	}
}
