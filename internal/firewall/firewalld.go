package firewall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// firewalld's interface on the bus, which is stable since its version 0.9.
const (
	firewalldName       = "org.fedoraproject.FirewallD1"
	firewalldPath       = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	firewalldZone       = firewalldName + ".zone"
	firewalldConfig     = firewalldName + ".config"
	firewalldConfigPath = firewalldPath + "/config"
	firewalldConfigZone = firewalldConfig + ".zone"
)

// ownPriority marks the rich rules that are Hanok's: before those of the zone,
// and never to be mistaken for an administrator's.
const ownPriority = -8182

// Firewalld is the firewalld of this host. The zero value reaches it over the
// system bus.
type Firewalld struct {
	// Bus is the address of another bus; "" is the system's.
	Bus string
}

// Admit lets the members through, and takes back what was let through for others
// before, in every active zone and the default one: now, and permanently, so that
// a reload leaves no gap. It reports whether a firewalld runs here at all; it
// starts none. It is idempotent.
func (f Firewalld) Admit(ctx context.Context, r Rules) (present bool, err error) {
	return f.with(ctx, func(b *bus) error { return b.set(richRules(r)) })
}

// Withdraw takes all rules back that Admit made.
func (f Firewalld) Withdraw(ctx context.Context) error {
	_, err := f.with(ctx, func(b *bus) error { return b.set(nil) })
	return err
}

// Admits tells whether a firewalld runs here, and lets all members through.
func (f Firewalld) Admits(ctx context.Context, r Rules) (present, all bool, err error) {
	all = true
	present, err = f.with(ctx, func(b *bus) error {
		zones, err := b.zones()
		for _, z := range zones {
			var have []string
			if have, err = b.rules(z); err != nil {
				break
			}
			for _, rule := range richRules(r) {
				all = all && slices.Contains(have, rule)
			}
		}
		return err
	})
	return present, all && present && err == nil, err
}

// Watch calls changed whenever firewalld was reloaded or started, until ctx ends
// or the bus goes away.
func (f Firewalld) Watch(ctx context.Context, changed func()) error {
	conn, err := f.dial(ctx)
	if err != nil {
		if absent(err) {
			return nil
		}
		return fmt.Errorf("firewalld: %w", err)
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	if err := errors.Join(conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(firewalldName), dbus.WithMatchMember("Reloaded")),
		conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, firewalldName))); err != nil {
		return fmt.Errorf("firewalld: watch the bus: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-signals:
			if !ok {
				return nil
			}
			if strings.HasSuffix(s.Name, ".Reloaded") || strings.HasSuffix(s.Name, ".NameOwnerChanged") {
				changed()
			}
		}
	}
}

func (f Firewalld) dial(ctx context.Context) (*dbus.Conn, error) {
	if f.Bus != "" {
		return dbus.Connect(f.Bus, dbus.WithContext(ctx))
	}
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil && err.Error() == "system bus not found" { // godbus has no value for it
		err = fs.ErrNotExist
	}
	return conn, err
}

// absent tells whether an error means that there is no bus.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// with runs do with a connection to a firewalld that runs.
func (f Firewalld) with(ctx context.Context, do func(*bus) error) (present bool, err error) {
	conn, err := f.dial(ctx)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("whether firewalld runs is not known: %w", err)
	}
	defer conn.Close()
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, firewalldName).Store(&present); err != nil || !present {
		return false, err
	}
	if err := do(&bus{ctx, conn}); err != nil {
		return true, fmt.Errorf("firewalld: %w", err)
	}
	return true, nil
}

// bus is a connection for one errand.
type bus struct {
	ctx  context.Context
	conn *dbus.Conn
}

func (b *bus) call(path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	return b.conn.Object(firewalldName, path).CallWithContext(b.ctx, method, dbus.FlagNoAutoStart, args...)
}

// zones are the active zones and the default one, sorted.
func (b *bus) zones() ([]string, error) {
	var active map[string]map[string][]string
	if err := b.call(firewalldPath, firewalldZone+".getActiveZones").Store(&active); err != nil {
		return nil, fmt.Errorf("list the active zones: %w", err)
	}
	var byDefault string
	if err := b.call(firewalldPath, firewalldName+".getDefaultZone").Store(&byDefault); err != nil {
		return nil, fmt.Errorf("the default zone: %w", err)
	}
	zones := []string{byDefault}
	for z := range active {
		zones = append(zones, z)
	}
	slices.Sort(zones)
	return slices.Compact(zones), nil
}

// rules are Hanok's rules that are in force in a zone.
func (b *bus) rules(zone string) ([]string, error) {
	var all []string
	if err := b.call(firewalldPath, firewalldZone+".getRichRules", zone).Store(&all); err != nil {
		return nil, fmt.Errorf("list the rules of zone %s: %w", zone, err)
	}
	return own(all), nil
}

// set makes want the only rules of Hanok in every zone, now and permanently.
func (b *bus) set(want []string) error {
	zones, err := b.zones()
	if err != nil {
		return err
	}
	for _, zone := range zones {
		have, err := b.rules(zone)
		if err != nil {
			return err
		}
		err = change(have, want,
			func(r string) error {
				return b.call(firewalldPath, firewalldZone+".addRichRule", zone, r, int32(0)).Err
			},
			func(r string) error { return b.call(firewalldPath, firewalldZone+".removeRichRule", zone, r).Err })
		if err == nil {
			err = b.keep(zone, want)
		}
		if err != nil {
			return fmt.Errorf("zone %s: %w", zone, err)
		}
	}
	return nil
}

// keep does the same in the permanent configuration of a zone.
func (b *bus) keep(zone string, want []string) error {
	var path dbus.ObjectPath
	if err := b.call(firewalldConfigPath, firewalldConfig+".getZoneByName", zone).Store(&path); err != nil {
		return fmt.Errorf("its permanent configuration: %w", err)
	}
	var all []string
	if err := b.call(path, firewalldConfigZone+".getRichRules").Store(&all); err != nil {
		return fmt.Errorf("its permanent rules: %w", err)
	}
	return change(own(all), want,
		func(r string) error { return b.call(path, firewalldConfigZone+".addRichRule", r).Err },
		func(r string) error { return b.call(path, firewalldConfigZone+".removeRichRule", r).Err })
}

// change adds what is missing first, then removes what is too much.
func change(have, want []string, add, remove func(string) error) error {
	for _, r := range want {
		if !slices.Contains(have, r) {
			if err := add(r); err != nil {
				return fmt.Errorf("add %s: %w", r, err)
			}
		}
	}
	for _, r := range have {
		if !slices.Contains(want, r) {
			if err := remove(r); err != nil {
				return fmt.Errorf("remove %s: %w", r, err)
			}
		}
	}
	return nil
}

// own are the rules that Hanok made.
func own(all []string) []string {
	prefix := fmt.Sprintf(`rule priority="%d" `, ownPriority)
	return slices.DeleteFunc(slices.Clone(all), func(r string) bool { return !strings.HasPrefix(r, prefix) })
}

// richRules are the rules for the members, as firewalld itself writes them.
func richRules(r Rules) []string {
	var out []string
	for _, m := range r.Members {
		family := "ipv4"
		if m = m.Unmap(); m.Is6() {
			family = "ipv6"
		}
		for _, s := range r.services() {
			out = append(out, fmt.Sprintf(`rule priority="%d" family="%s" source address="%s" port port="%d" protocol="%s" accept`, ownPriority, family, m, s.port, s.word()))
		}
	}
	return out
}
