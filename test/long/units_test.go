package long_test

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/drill"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/model"
)

// sh runs a script in a host.
func (u *upgrade) sh(host, script string) string {
	u.t.Helper()
	out, err := u.d.Exec(u.ctx, host, "sh", "-ec", script)
	if err != nil {
		u.t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// number is a property of a unit that is a number, such as a time in microseconds.
func (u *upgrade) number(host, unit, property string) int64 {
	u.t.Helper()
	text := u.sh(host, "systemctl show --value -p "+property+" "+unit)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		u.t.Fatalf("%s of %s: %q", property, unit, text)
	}
	return n
}

// The units of the package under a real systemd: what is hardened works, the
// daemons start in their order at boot, may be restarted and killed while VMs run,
// and the shutdown of a host stops its VMs first.
func TestUnitsUnderSystemd(t *testing.T) {
	u := &upgrade{t: t, old: map[string]bool{}}
	u.ctx, u.d = upWith(t, lab.Options{Packages: []string{deb(t, current(t), "hanok")}, VMs: 4})
	host, err := u.d.BusiestSecondary(u.ctx)
	u.must(err)
	const units = "hanok-guard hanok-agent hanok-host-shutdown"

	t.Run("they are sound", func(t *testing.T) {
		u := u.in(t)
		if out := u.sh(host, "systemctl --failed --no-legend --plain"); out != "" {
			t.Errorf("failed units:\n%s", out)
		}
		u.sh(host, "systemctl is-enabled "+units+" && systemctl is-active "+units)
		u.sh(host, "systemd-analyze verify --man=no /usr/lib/systemd/system/hanok-*.service")
		// Exposure in tenths: what remains is what they need (operations.md).
		for unit, most := range map[string]string{"hanok-guard": "72", "hanok-agent": "72", "hanok-host-shutdown": "72"} {
			out, err := u.d.Exec(u.ctx, host, "systemd-analyze", "security", "--no-pager", "--threshold="+most, unit)
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			t.Log(strings.TrimSpace(lines[len(lines)-1]))
			if err != nil {
				t.Errorf("%s is exposed more than %s tenths: %v", unit, most, err)
			}
		}
		if out := u.sh(host, "systemctl stop hanok-host-shutdown 2>&1 || true"); !strings.Contains(out, "may be requested by dependency only") {
			t.Errorf("the unit that stops VMs let itself be stopped by hand: %q", out)
		}
	})

	t.Run("the journal knows them", func(t *testing.T) {
		u := u.in(t)
		for _, identity := range []string{"fdm", "guard"} {
			if out := u.sh(host, "journalctl -q --no-pager -o cat -n 3 -t "+identity); out == "" {
				t.Errorf("the journal has nothing of %s", identity)
			}
		}
		if out := u.sh(host, "journalctl -q --no-pager -n 1 -o json -t fdm HANOK_KIND=ha.election"); !strings.Contains(out, `"HANOK_HOST":"`) {
			t.Errorf("the election, with its fields: %q", out)
		}
	})

	t.Run("the guard has what it needs", func(t *testing.T) {
		u := u.in(t)
		pid := u.sh(host, "systemctl show --value -p MainPID hanok-guard")
		for what, script := range map[string]string{
			"real-time priority":  "chrt -p " + pid + " | grep -q SCHED_FIFO",
			"locked memory":       "grep -q 'VmLck:.*[1-9]' /proc/" + pid + "/status",
			"no out-of-memory":    "[ $(cat /proc/" + pid + "/oom_score_adj) = -1000 ] || ! sh -c 'echo -1000 >/proc/self/oom_score_adj' 2>/dev/null", // or nobody may here
			"the watchdog":        "ls -l /proc/" + pid + "/fd | grep -q /dev/watchdog",
			"VMs of its own tree": "systemctl status --no-pager hanok-guard libvirtd | (! grep -q qemu-system)",
		} {
			if _, err := u.d.Exec(u.ctx, host, "sh", "-ec", script); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	})

	t.Run("restarted and killed", func(t *testing.T) {
		u := u.in(t)
		before := u.life()
		for _, unit := range []string{"hanok-agent", "hanok-guard", "libvirtd"} {
			for _, how := range []string{"systemctl restart " + unit, "systemctl kill --kill-who=main -s KILL " + unit} {
				was := u.number(host, unit, "MainPID")
				u.sh(host, how)
				u.must(drill.Until(u.ctx, 10*time.Second, unit+" is back after "+how, func() error {
					if now := u.number(host, unit, "MainPID"); now == 0 || now == was {
						return fmt.Errorf("its process is %d, before %d", now, was)
					}
					return nil
				}))
			}
			u.settle()
			if after := u.life(); !maps.Equal(before, after) {
				t.Errorf("%s restarted: VMs were\n%v\nand are\n%v", unit, before, after)
			}
		}
		u.sh(host, "systemctl stop hanok-agent; if pgrep -x hanok; then exit 1; fi; systemctl start hanok-agent")
		u.settle()
		if after := u.life(); !maps.Equal(before, after) {
			t.Errorf("the agent stopped and started: VMs were\n%v\nand are\n%v", before, after)
		}
	})

	t.Run("a boot", func(t *testing.T) {
		u := u.in(t)
		u.must(u.d.PowerOff(u.ctx, host))
		u.must(u.d.PowerOn(u.ctx, host, false))
		u.settle()
		guard, libvirtd, agent := u.number(host, "hanok-guard", "ExecMainStartTimestampMonotonic"),
			u.number(host, "libvirtd", "ExecMainStartTimestampMonotonic"), u.number(host, "hanok-agent", "ExecMainStartTimestampMonotonic")
		if guard >= libvirtd || libvirtd >= agent {
			t.Errorf("started at %d, %d, %d µs: want guard, libvirtd, agent", guard, libvirtd, agent)
		}
	})

	t.Run("a shutdown", func(t *testing.T) {
		u := u.in(t)
		u.must(u.d.EnsureVMs(u.ctx, host, 1))
		st, err := u.d.State(u.ctx)
		u.must(err)
		moved := drill.On(st, host)
		began := time.Now()
		u.must(u.d.Power(u.ctx, host, supervisor.Shutdown))
		t.Logf("the shutdown with %d VMs took %.1f s", len(moved), time.Since(began).Seconds())
		u.must(drill.Until(u.ctx, time.Minute, "its VMs run elsewhere", func() error {
			st, err := u.d.State(u.ctx)
			if err != nil {
				return err
			}
			for _, vm := range moved {
				if err := drill.Once(st, vm); err != nil {
					return err
				}
			}
			return nil
		}))
		u.must(drill.Until(u.ctx, 15*time.Second, "it is shown as disconnected, not as failed", func() error {
			view, err := u.d.Status(u.ctx)
			if err != nil {
				return err
			}
			switch h := view.HostByName(model.HostID(host)); {
			case h == nil:
				return errors.New("it is unknown")
			case h.State == model.HostFailed:
				t.Fatalf("%s, which shut down in order, is shown as %+v", host, h)
			case h.State != model.HostDisconnected:
				return fmt.Errorf("it is %s: %s", h.State, h.Reason)
			}
			return nil
		}))
		st, err = u.d.State(u.ctx)
		u.must(err)
		for _, h := range st.Hosts {
			if h.Resets != 0 {
				t.Errorf("%s was reset %d times", h.Name, h.Resets)
			}
		}
		u.must(u.d.PowerOn(u.ctx, host, false))
		u.settle()
	})
}

// in is the same cluster for a part of the test.
func (u *upgrade) in(t *testing.T) *upgrade {
	return &upgrade{t: t, ctx: u.ctx, d: u.d, old: u.old}
}
