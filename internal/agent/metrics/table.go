package metrics

import "github.com/prometheus/client_golang/prometheus"

// Metric describes one metric.
type Metric struct {
	Name   string
	Type   prometheus.ValueType
	Labels []string
	// Help says what it is, and its unit where the name does not.
	Help string
}

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// Tables are all metrics of an agent, in the order of the documentation.
var Tables = []Metric{
	{"hanok_build_info", gauge, []string{"version"}, "1; the version of the agent"},
	{"hanok_agent_ready", gauge, nil, "1 when the agent works: configuration, certificate and transport are usable"},
	{"hanok_agent_loop_up", gauge, nil, "1 when the agent's main loop answers; 0 is an alarm"},
	{"hanok_agent_primary", gauge, nil, "1 on the primary"},
	{"hanok_host_state", gauge, []string{"state"}, "1 for the state of this host, as its primary sees it"},
	{"hanok_config_version", gauge, nil, "version of the cluster file that this host keeps"},
	{"hanok_cluster_view_age_seconds", gauge, nil, "age of the primary's account that this host has"},
	{"hanok_problems", gauge, nil, "entries in the list of problems of `hanok status` on this host"},
	{"hanok_certificate_expiry_timestamp_seconds", gauge, nil, "end of this host's certificate, seconds since 1970"},
	{"hanok_hypervisor_up", gauge, nil, "1 when libvirtd answers"},
	{"hanok_events_total", counter, []string{"severity"}, "events of this host since its agent started"},
	{"hanok_agent_incidents_total", counter, []string{"what"}, "what the agent dropped, refused or did late since it started"},
	{"hanok_wire_total", counter, []string{"what"}, "datagrams, messages, connections and refusals between agents (docs/security.md)"},

	{"hanok_guard_up", gauge, nil, "1 when this host's guard answers"},
	{"hanok_guard_armed", gauge, nil, "1 when the watchdog is armed as the protocol needs it"},
	{"hanok_guard_hook_seen", gauge, nil, "1 when libvirtd is proven to run the hook"},
	{"hanok_guard_warnings", gauge, nil, "facts about the guard's process that need attention, such as a missing real-time priority"},
	{"hanok_guard_longest_write_seconds", gauge, nil, "longest heartbeat write since the guard started"},
	{"hanok_lease_valid", gauge, []string{"datastore"}, "1 while this host's lease on the datastore is valid"},
	{"hanok_lease_left_seconds", gauge, []string{"datastore"}, "what is left of the lease; negative after it lapsed"},
	{"hanok_list_held", gauge, []string{"datastore"}, "1 when this host holds the datastore's protected list"},
	{"hanok_locks", gauge, []string{"phase"}, "VMs whose locks this host's guard holds or takes, by phase"},

	{"hanok_cluster_ha_enabled", gauge, nil, "1 when high availability is on; primary only"},
	{"hanok_cluster_hosts", gauge, []string{"state"}, "hosts by state; primary only"},
	{"hanok_cluster_hosts_armed", gauge, nil, "hosts whose watchdog is armed; primary only"},
	{"hanok_cluster_host_silence_seconds", gauge, []string{"host"}, "since the last heartbeat of each host on the network; primary only"},
	{"hanok_cluster_slot_age_seconds", gauge, []string{"host", "datastore"}, "age of each heartbeat slot as the primary reads it; primary only"},
	{"hanok_cluster_vms", gauge, []string{"state"}, "protected and managed VMs by state; primary only"},
	{"hanok_cluster_vms_protected", gauge, nil, "VMs that would be restarted; primary only"},
	{"hanok_cluster_datastores_unowned", gauge, nil, "datastores whose protected list nobody holds; primary only"},
}
