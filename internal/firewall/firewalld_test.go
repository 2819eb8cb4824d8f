package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// startBus runs a message bus of its own and returns its address.
func startBus(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Fatal("this test needs dbus-daemon (package dbus-daemon):", err)
	}
	dir := t.TempDir()
	address := "unix:path=" + filepath.Join(dir, "bus")
	conf := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<busconfig><listen>%s</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`, address)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--nofork", "--nopidfile", "--nosyslog", "--print-address=1", "--config-file="+conf)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil { // it says its address when it listens
		t.Fatal("dbus-daemon does not start:", err)
	}
	return address
}

// fakeFirewalld answers as firewalld does, for what Hanok asks.
type fakeFirewalld struct {
	mu        sync.Mutex
	now       map[string][]string // rich rules of zones
	permanent map[string][]string
	conn      *dbus.Conn
	refuse    bool
}

type fakeConfigZone struct {
	f    *fakeFirewalld
	zone string
}

func startFirewalld(t *testing.T, address string) *fakeFirewalld {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f := &fakeFirewalld{conn: conn, now: map[string][]string{"public": {"rule family=\"ipv4\" port port=\"8182\" protocol=\"tcp\" drop"}, "home": nil, "idle": nil}, permanent: map[string][]string{}}
	methods := func(names ...string) map[string]string {
		m := map[string]string{}
		for _, n := range names {
			m[strings.ToUpper(n[:1])+n[1:]] = n
		}
		return m
	}
	if err := conn.ExportWithMap(f, methods("getActiveZones", "getRichRules", "addRichRule", "removeRichRule"), firewalldPath, firewalldZone); err != nil {
		t.Fatal(err)
	}
	if err := conn.ExportWithMap(f, methods("getDefaultZone"), firewalldPath, firewalldName); err != nil {
		t.Fatal(err)
	}
	if err := conn.ExportWithMap(f, methods("getZoneByName"), firewalldConfigPath, firewalldConfig); err != nil {
		t.Fatal(err)
	}
	for zone := range f.now {
		if err := conn.ExportWithMap(fakeConfigZone{f, zone}, methods("getRichRules", "addRichRule", "removeRichRule"), firewalldConfigPath+"/zone/"+dbus.ObjectPath(zone), firewalldConfigZone); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := conn.RequestName(firewalldName, dbus.NameFlagDoNotQueue); err != nil || r != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(r, err)
	}
	return f
}

func (f *fakeFirewalld) GetActiveZones() (map[string]map[string][]string, *dbus.Error) {
	return map[string]map[string][]string{"home": {"interfaces": {"eth1"}}}, nil
}
func (f *fakeFirewalld) GetDefaultZone() (string, *dbus.Error) { return "public", nil }
func (f *fakeFirewalld) GetRichRules(zone string) ([]string, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.now[zone]), nil
}
func (f *fakeFirewalld) AddRichRule(zone, rule string, timeout int32) (string, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse || timeout != 0 || slices.Contains(f.now[zone], rule) {
		return "", dbus.MakeFailedError(fmt.Errorf("ALREADY_ENABLED or refused"))
	}
	f.now[zone] = append(f.now[zone], rule)
	return zone, nil
}
func (f *fakeFirewalld) RemoveRichRule(zone, rule string) (string, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now[zone] = slices.DeleteFunc(f.now[zone], func(r string) bool { return r == rule })
	return zone, nil
}
func (f *fakeFirewalld) GetZoneByName(zone string) (dbus.ObjectPath, *dbus.Error) {
	return firewalldConfigPath + "/zone/" + dbus.ObjectPath(zone), nil
}

func (z fakeConfigZone) GetRichRules() ([]string, *dbus.Error) {
	z.f.mu.Lock()
	defer z.f.mu.Unlock()
	return slices.Clone(z.f.permanent[z.zone]), nil
}
func (z fakeConfigZone) AddRichRule(rule string) *dbus.Error {
	z.f.mu.Lock()
	defer z.f.mu.Unlock()
	z.f.permanent[z.zone] = append(z.f.permanent[z.zone], rule)
	return nil
}
func (z fakeConfigZone) RemoveRichRule(rule string) *dbus.Error {
	z.f.mu.Lock()
	defer z.f.mu.Unlock()
	z.f.permanent[z.zone] = slices.DeleteFunc(z.f.permanent[z.zone], func(r string) bool { return r == rule })
	return nil
}

func TestFirewalld(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	none := Firewalld{Bus: "unix:path=" + filepath.Join(t.TempDir(), "none")}
	if present, err := none.Admit(ctx, rules); present || err != nil {
		t.Errorf("without a bus: %v %v", present, err)
	}
	d := Firewalld{Bus: startBus(t)}
	if present, err := d.Admit(ctx, rules); present || err != nil {
		t.Errorf("without firewalld: %v %v", present, err)
	}
	changed := make(chan struct{}, 8)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	ready, _ := dbus.Connect(d.Bus) // to see that the watch is there
	defer ready.Close()
	go func() { ended <- d.Watch(watching, func() { changed <- struct{}{} }) }()
	for names := []string(nil); len(names) < 3; { // the bus, this and the watch
		if err := ready.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
			t.Fatal(err)
		}
	}
	f := startFirewalld(t, d.Bus)
	for range 2 {
		if present, err := d.Admit(ctx, rules); !present || err != nil {
			t.Fatalf("%v %v", present, err)
		}
	}
	for _, zone := range []string{"public", "home"} {
		if got := own(f.now[zone]); !slices.Equal(got, richRules(rules)) {
			t.Errorf("zone %s: %v", zone, got)
		}
		if got := f.permanent[zone]; !slices.Equal(got, richRules(rules)) {
			t.Errorf("zone %s, permanent: %v", zone, got)
		}
	}
	if len(f.now["public"]) != 7 || len(f.now["idle"]) != 0 {
		t.Errorf("%v", f.now)
	}
	if present, all, err := d.Admits(ctx, rules); !present || !all || err != nil {
		t.Errorf("admits: %v %v %v", present, all, err)
	}
	fewer := Rules{Port: port, Members: []netip.Addr{member}}
	if _, err := d.Admit(ctx, fewer); err != nil {
		t.Error(err)
	}
	if got := own(f.now["home"]); !slices.Equal(got, richRules(fewer)) || !slices.Equal(f.permanent["home"], richRules(fewer)) {
		t.Errorf("after a member left: %v, %v", got, f.permanent["home"])
	}
	if _, all, _ := d.Admits(ctx, rules); all {
		t.Error("it admits a member that it does not")
	}
	for len(changed) > 0 { // its start may have been seen
		<-changed
	}
	if err := f.conn.Emit(firewalldPath, firewalldName+".Reloaded"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-ctx.Done():
		t.Error("a reload is not noticed")
	}
	if err := d.Withdraw(ctx); err != nil {
		t.Error(err)
	}
	if len(f.now["public"]) != 1 || len(f.now["home"])+len(f.permanent["home"])+len(f.permanent["public"]) != 0 {
		t.Errorf("after it was withdrawn: %v, %v", f.now, f.permanent)
	}
	f.mu.Lock()
	f.refuse = true
	f.mu.Unlock()
	if present, err := d.Admit(ctx, rules); !present || err == nil || !strings.Contains(err.Error(), "zone home: add rule") {
		t.Errorf("refused: %v %v", present, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
