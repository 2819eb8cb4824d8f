// Package state is what a server knows, as typed objects over package store:
// which keys there are, what their values mean, and which changes belong
// together.
//
//	config/<cluster>                wanted cluster file, the newest version
//	version/<cluster>/<version>     each version, with who made it and what changed
//	foreign/<cluster>               what the hosts have and nobody configured here
//	cluster/<cluster>               the hosts' account of the cluster
//	host/<cluster>/<host>           … of a host
//	vm/<cluster>/<id>               … of a VM
//	datastore/<cluster>/<name>      … of a datastore
//	event/<cluster>/<id>            events, in the order of their creation
//	cursor/<cluster>/<stream>       how far a stream of events has been read
//	floor/<cluster>                 the time up to which events were removed
//	task/<id>                       long operations
//	done/<principal>/<key>          requests that were carried out (idempotency)
//	user/<name>, users              who may log in; the second is written with every change of them
//	token/<user id>/<id>            API tokens, their secrets as digests
//	session/<user id>/<id>          sessions of browsers, likewise
//	setup                           the one-time link of the first administrator, likewise
//	authority                       the CA of servers' addresses, with its key
//	trust/<cluster id>              the CAs of a cluster, with their keys, and how far a replacement is
//	enrol/<cluster id>/<host>       one-time tokens of hosts, their secrets as digests
//	hosttrust/<cluster>/<host>      what a host says of its certificate and whom it trusts
//	audit/<kind>/<id>               who changed what, and who was refused
//
// Accounts and trust are JSON records of the packages account and trust. All other values are messages of
// the API in protobuf, so that a newer server reads what an older one wrote.
// Cluster files are compressed.
//
// [Cache] follows all but events and versions in memory and answers lists.
package state
