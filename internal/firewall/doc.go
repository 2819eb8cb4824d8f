// Package firewall closes the agents' port to everybody but the cluster's
// members, and while HA is off to them too, in an nftables table of its own, and
// finds other firewalls that drop what members send.
//
// The table admits or drops packets to the port alone; all else passes it. An
// accept in it cannot override a drop in another table: [Check] follows a
// member's packet through the other tables and says which chain drops it and
// what to write there. Where firewalld runs, [Firewalld] has it admit the members.
package firewall
