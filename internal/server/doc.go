// Package server is `hanok server`: the API over the state in etcd, and the
// background work that keeps the state in step with the hosts.
//
// Any number of servers may run over one etcd. All of them answer the API from
// a copy of the state that follows etcd; one, the leader, follows the agents
// and carries out tasks. Every change that the leader writes rests on its
// leadership, so that a predecessor that was only slow changes nothing.
//
// Failover needs none of this: agents do not know whether a server exists.
package server
