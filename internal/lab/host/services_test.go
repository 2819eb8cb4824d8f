package host

import (
	"os"
	"strings"
	"testing"
)

// What the lab runs before a host stops is what the unit of the packages runs.
func TestStopVMsIsTheUnits(t *testing.T) {
	b, err := os.ReadFile("../../../packaging/systemd/hanok-host-shutdown.service")
	if err != nil {
		t.Fatal(err)
	}
	if want := "ExecStop=-/usr/bin/" + strings.Join(stopVMs, " ") + "\n"; !strings.Contains(string(b), want) {
		t.Errorf("the unit has not the line %q", want)
	}
}
