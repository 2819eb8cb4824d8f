// Package trust keeps the authorities of clusters and signs the certificates of
// their hosts, and of the server itself towards them.
//
// A cluster's authority is made when the cluster becomes known to the server, or
// is imported. Hosts get their first certificate for a one-time token
// ([Book.Enrol]); later ones are renewed over the connection that the one before
// opens (package work). The server's own identity towards agents is a key in
// memory that is replaced every day and never written down.
//
// To replace an authority the list of those that hosts are to trust grows, the
// new one moves to its front, which signs, and the old one leaves. Each of these
// three phases is one change of the state; the next begins when every host of
// the cluster file has what the present one asks for.
package trust
