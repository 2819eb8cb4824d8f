package main

import (
	"bufio"
	"fmt"
	"io"
)

// noParameters is the digest that Pacemaker computes for an operation without
// parameters: without it in the history every resource would be restarted.
const noParameters = "f2317cad3d54cec5d7d7aa7d0bf35cf8"

// writeCIB writes the cluster as a Pacemaker cluster information base: one
// VirtualDomain per VM, running where it runs, with the memory and the virtual
// processors of hosts and VMs as utilisation. The lost hosts are off.
func (c *cluster) writeCIB(to io.Writer, strategy string, lost map[int]bool) error {
	w := bufio.NewWriter(to)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	line(`<cib crm_feature_set="3.16.2" validate-with="pacemaker-3.9" have-quorum="1" admin_epoch="0" epoch="1" num_updates="0" dc-uuid="1">`)
	line(` <configuration><crm_config><cluster_property_set id="opts">`)
	for _, o := range [][2]string{{"placement-strategy", strategy}, {"stonith-enabled", "true"}, {"no-quorum-policy", "stop"}, {"enable-startup-probes", "false"},
		{"cluster-infrastructure", "corosync"}, {"have-watchdog", "false"}, {"batch-limit", "0"}, {"migration-limit", "4"}} {
		line(`  <nvpair id="opts-%s" name="%s" value="%s"/>`, o[0], o[0], o[1])
	}
	line(` </cluster_property_set></crm_config><nodes>`)
	for i, h := range c.hosts {
		line(`  <node id="%d" uname="%s"><utilization id="n%d-u"><nvpair id="n%d-u-cpu" name="cpu" value="%d"/><nvpair id="n%d-u-mem" name="hv_memory" value="%d"/></utilization></node>`,
			i+1, h.name, i, i, h.cores*overcommit, i, h.memory)
	}
	line(` </nodes><resources><primitive id="fence" class="stonith" type="fence_ipmilan"/>`)
	for _, g := range c.vms {
		line(`  <primitive id="%s" class="ocf" provider="heartbeat" type="VirtualDomain"><meta_attributes id="%s-m"><nvpair id="%s-m-s" name="resource-stickiness" value="100"/><nvpair id="%s-m-a" name="allow-migrate" value="true"/></meta_attributes>`, g.name, g.name, g.name, g.name)
		line(`   <operations><op id="%s-mon" name="monitor" interval="10s" timeout="30s"/></operations>`, g.name)
		line(`   <utilization id="%s-u"><nvpair id="%s-u-cpu" name="cpu" value="%d"/><nvpair id="%s-u-mem" name="hv_memory" value="%d"/></utilization></primitive>`, g.name, g.name, g.cpus, g.name, g.memory)
	}
	line(` </resources><constraints/></configuration><status>`)
	on := make([][]string, len(c.hosts))
	for _, g := range c.vms {
		on[g.host] = append(on[g.host], g.name)
	}
	for i, h := range c.hosts {
		member, daemon, join := "true", "online", "member"
		if lost[i] {
			member, daemon, join = "false", "offline", "down"
		}
		line(`  <node_state id="%d" uname="%s" in_ccm="%s" crmd="%s" join="%s" expected="member" crm-debug-origin="bench"><lrm id="%d"><lrm_resources>`, i+1, h.name, member, daemon, join, i+1)
		if i == 0 {
			line(`   <lrm_resource id="fence" class="stonith" type="fence_ipmilan">`)
			history(line, "fence", h.name, "start", "0")
			line(`   </lrm_resource>`)
		}
		for _, vm := range on[i] {
			line(`   <lrm_resource id="%s" class="ocf" provider="heartbeat" type="VirtualDomain">`, vm)
			history(line, vm, h.name, "start", "0")
			history(line, vm, h.name, "monitor", "10000")
			line(`   </lrm_resource>`)
		}
		line(`  </lrm_resources></lrm></node_state>`)
	}
	line(` </status></cib>`)
	return w.Flush()
}

// history is one operation that succeeded.
func history(line func(string, ...any), resource, node, operation, interval string) {
	id := "last_0"
	if operation == "monitor" {
		id = "monitor_" + interval
	}
	line(`    <lrm_rsc_op id="%s_%s" operation_key="%s_%s_%s" operation="%s" interval="%s" on_node="%s" call-id="1" rc-code="0" op-status="0" transition-key="1:1:0:bench" transition-magic="0:0;1:1:0:bench" exit-reason="" crm-debug-origin="bench" crm_feature_set="3.16.2" last-rc-change="1700000000" exec-time="1" queue-time="0" op-digest="%s"/>`,
		resource, id, resource, operation, interval, operation, interval, node, noParameters)
}
