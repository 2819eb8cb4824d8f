package fdm

import (
	"strings"
	"testing"
)

// What waits for a place is tried again at once when anything changes that may
// give it one: without the look after Config.Probe, which is an hour here.
func TestRetriedAtOnce(t *testing.T) {
	const full = "on\nvm web ds1 host1 6000\nvm other ds1 host2 4000\nvm third ds1 host3 4000\nrun 20s\npower-off host1\nrun 20s\nexpect web queued MiB"
	for _, c := range []struct{ name, hosts, waits, change, then string }{
		{"a VM ended", "3 ds1", full, "die other guestShutdown", "expect web on host2"},
		{"a VM was stopped", "3 ds1", full, "admin host2 shutdown third", "expect web on host3"},
		{"the host has more memory", "3 ds1", full, "config host2 memory=16000", "expect web started"},
		{"the host is back", "3 ds1", full, "power-on host1", "expect web on host1"},
		{"the rule is gone", "3 ds1", "rule here must web host1\non\nvm web ds1 host1\nrun 20s\npower-off host1\nrun 20s\nexpect web queued rule here", "config host2 rules=none", "expect web started"},
		{"what it must be apart from ended", "2 ds1", "rule apart apart web,other\non\nvm web ds1 host1\nvm other ds1 host2\nrun 20s\npower-off host1\nrun 20s\nexpect web queued rule apart", "die other guestShutdown", "expect web on host2"},
		{"a datastore is back", "3 ds1 ds2", "on\nvm web ds1 host1\ndisk web ds2\nrun 20s\nlose host2 ds2 lost\nlose host3 ds2 lost\nrun 20s\npower-off host1\nrun 20s\nexpect web queued ds2", "regain host2 ds2", "expect web on host2"},
		{"one datastore for another", "3 ds1 ds2 ds3", "on\nvm web ds1 host1\ndisk web ds2\nrun 20s\nlose host2 ds2 lost\nlose host3 ds2 lost\nrun 20s\npower-off host1\nrun 20s\nexpect web queued ds2",
			"swap host2 ds2 ds3", "expect web on host2"},
		{"maintenance is over", "3 ds1", "rule off must web host1,host2\non\nvm web ds1 host1\nrun 20s\nconfig host3 maintenance=host2\nrun 5s\npower-off host1\nrun 20s\nexpect web queued maintenance", "config host3 maintenance=", "expect web on host2"},
		{"the guard answers again", "3 ds1", "rule off must web host1,host2\non\nvm web ds1 host1\nrun 20s\nguard kill host2\nrun 2s\npower-off host1\nrun 20s\nexpect web queued guard", "guard start host2", "expect web on host2"},
		{"libvirt answers again", "3 ds1", "rule off must web host1,host2\non\nvm web ds1 host1\nrun 20s\nlibvirt stop host2\nrun 2s\npower-off host1\nrun 20s\nexpect web queued libvirt", "libvirt start host2", "expect web on host2"},
		{"its shutdown was called off", "3 ds1", "rule off must web host1,host2\non\nvm web ds1 host1\nrun 20s\nadmin host2 leave 60s\nrun 2s\npower-off host1\nrun 20s\nexpect web queued", "admin host2 leave cancel", "expect web on host2"},
		{"a host without failed attempts is back", "2 ds1", "on\nvm web ds1 host1\nrun 20s\nfail-start web other -1 host2\npower-off host1\nrun 14s\nexpect web down", "power-on host1", "expect web on host1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &scenario{t: t}
			for _, line := range strings.Split("hosts "+c.hosts+"\nprobe 1h\n"+c.waits+"\n"+c.change+"\nrun 3s\n"+c.then, "\n") {
				s.line = line
				s.verb(strings.Fields(line))
			}
			if t.Failed() {
				t.Log("\n" + strings.Join(s.w.log, "\n"))
			}
		})
	}
}
