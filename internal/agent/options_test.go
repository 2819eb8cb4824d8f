package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/snapshot"
)

// TestEveryOptionActs: each advanced option changes what is computed from the
// cluster file where it acts, or is declared as belonging to a later feature.
// What the changed values do is tested beside the code that uses them, which the
// last column names.
func TestEveryOptionActs(t *testing.T) {
	tried := map[string]bool{}
	clusterOf := func(c *config.Cluster) any { f := ClusterOf(c, "host1"); f.File = nil; return f }
	for _, c := range []struct {
		name, value string
		seen        func(c *config.Cluster) any
		tested      string
	}{
		{"das.isolationaddress0", "10.0.0.254", func(c *config.Cluster) any { return isolationOf(c) }, "TestIsolationAddresses"},
		{"das.usedefaultisolationaddress", "false", func(c *config.Cluster) any { return isolationOf(c) }, "TestIsolationAddresses"},
		{"das.isolationShutdownTimeout", "60", clusterOf, "fdm.TestAgentRestartsDuringIsolationResponse"},
		{"das.config.fdm.isolationPolicyDelaySec", "30", clusterOf, "fdm.TestScenarios/isolated"},
		{"das.heartbeatDsPerHost", "3", func(c *config.Cluster) any {
			all := func(model.HostID, model.DatastoreName) bool { return true }
			return fdm.HeartbeatStores(ClusterOf(c, "host1"), all)
		}, "fdm.TestChoiceOfHeartbeatDatastores"},
		{"das.ignoreInsufficientHbDatastore", "true", clusterOf, "fdm.TestHeartbeatDatastoresAreChosenAnew"},
		{"das.ignoreRedundantNetWarning", "true", clusterOf, "fdm.networkWarnings"},
		{"das.allowNetwork0", "hb2", func(c *config.Cluster) any { return ClusterOf(c, "host1").HeartbeatNetworks }, "config.HeartbeatNetworks"},
		{"das.vmCpuMinMHz", "100", func(c *config.Cluster) any { return snapshot.Policy(c) }, "package admission"},
		{"das.vmMemoryMinMB", "64", func(c *config.Cluster) any { return snapshot.Policy(c) }, "package admission"},
		{"das.slotCpuInMHz", "500", func(c *config.Cluster) any { return snapshot.Policy(c) }, "package admission"},
		{"das.slotMemInMB", "600", func(c *config.Cluster) any { return snapshot.Policy(c) }, "package admission"},
		{"das.perHostConcurrentFailoversLimit", "3", clusterOf, "package placement"},
		{"das.maxvmrestartcount", "2", clusterOf, "fdm.TestScenarios/start-fails"},
		{"das.maskCleanShutdownEnabled", "false", clusterOf, "fdm.TestMaskCleanShutdown"},
		{"das.respectVmVmAntiAffinityRules", "false", func(c *config.Cluster) any { return ClusterOf(c, "host1").Rules }, "fdm.TestScenarios/rules"},
		{"das.respectVmHostSoftAffinityRules", "false", func(c *config.Cluster) any { return ClusterOf(c, "host1").Rules }, "fdm.TestScenarios/rules"},
		{"das.config.fdm.hostTimeout", "12", clusterOf, "fdm.TestHostTimeout"},
		{"das.config.fdm.icmpPingTimeout", "3", func(c *config.Cluster) any { return c.PingTimeout() }, "pingLimit"},
		{"das.config.fdm.deadIcmpPingInterval", "30", clusterOf, "fdm.TestDeadPingInterval"},
		{"das.config.fdm.stateLogInterval", "5", func(c *config.Cluster) any { return stateLogInterval(c) }, "TestEvery, TestSummary"},
		{"das.config.log.maxFileNum", "4", func(c *config.Cluster) any { _, n := eventBounds(c); return n }, "eventlog.TestBound"},
		{"das.config.log.maxFileSize", "200000", func(c *config.Cluster) any { n, _ := eventBounds(c); return n }, "eventlog.TestBound"},
	} {
		before, after := optionsCluster(t, ""), optionsCluster(t, c.name+": "+c.value)
		if a, b := fmt.Sprintf("%+v", c.seen(before)), fmt.Sprintf("%+v", c.seen(after)); a == b {
			t.Errorf("%s: %s changes nothing (used by %s): %.300s", c.name, c.value, c.tested, a)
		}
		tried[strings.TrimRight(c.name, "0")] = true
	}
	for _, o := range optionsCluster(t, "").DescribeOptions() {
		switch {
		case o.Later != "" && tried[o.Name]:
			t.Errorf("%s acts, and says that it will with %s", o.Name, o.Later)
		case o.Later == "" && !tried[o.Name]:
			t.Errorf("%s says that it acts, and no case above shows where", o.Name)
		}
	}
}

func optionsCluster(t *testing.T, option string) *config.Cluster {
	t.Helper()
	c, err := config.Parse([]byte(`version: 1
name: c
ha: {options: {` + option + `}}
networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}]
datastores: [{name: ds1}, {name: ds2}, {name: ds3}]
hosts:
- {name: host1, groups: [rack], address: {mgmt: 10.0.0.1, hb2: 10.1.0.1}, datastores: [ds1, ds2, ds3]}
- {name: host2, address: {mgmt: 10.0.0.2, hb2: 10.1.0.2}, datastores: [ds1, ds2, ds3]}
vms: [{name: a, datastore: ds1, memory: 64MiB}, {name: b, datastore: ds1, memory: 64MiB}]
rules:
- {name: apart, kind: resourceAffinity, vms: [a, b], policy: apart}
- {name: near, kind: vmHost, vms: [a], hostGroups: [rack], must: false}
`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func isolationOf(c *config.Cluster) any {
	var x isolationAddresses
	x.learn(context.Background(), nil, c) // addresses only: nothing to look up
	return x.all([]netip.Addr{netip.MustParseAddr("10.0.0.253")})
}

func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		changed, interval, calls := make(chan struct{}), 10*time.Second, 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			every(ctx, changed, func() time.Duration { return interval }, func() { calls++ })
		}()
		after := func(d time.Duration, want int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if calls != want {
				t.Errorf("after %v more with interval %v: %d calls, want %d", d, interval, calls, want)
			}
		}
		after(35*time.Second, 3)
		interval = 0
		changed <- struct{}{}
		after(time.Hour, 3)
		interval = time.Minute
		changed <- struct{}{}
		after(time.Second, 4) // it is due
		after(2*time.Minute, 6)
		cancel()
		<-done
	})
}

func TestSummary(t *testing.T) {
	v := fdm.ClusterView{Version: 3,
		Hosts:      []fdm.HostView{{State: model.HostPrimary}, {State: model.HostConnected}, {State: model.HostConnected}},
		VMs:        []fdm.VMView{{State: model.VMStarted, Protected: true}, {State: model.VMStarted}},
		Datastores: []fdm.DatastoreView{{Name: "ds1", Owner: "host3"}, {Name: "ds2"}}}
	if got, want := fmt.Sprint(summary(v)...), fmt.Sprint("version", uint64(3), "hosts", "connected=2 primary=1", "vms", "started=2", "unprotected", 1, "lists", "ds1=host3 ds2=nobody"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
