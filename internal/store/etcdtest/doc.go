// Package etcdtest runs etcd clusters on loopback for tests of those who use
// them: with the limits that etcd has by default, with or without TLS, and with a
// network between that can be cut.
package etcdtest
