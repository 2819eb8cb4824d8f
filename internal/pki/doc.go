// Package pki is the cluster's certificate authority and the identities that
// its certificates carry.
//
// Who a host is stands in one URI of its certificate,
// hanok://<cluster-id>/host/<host>, and nowhere else: neither a DNS name nor an
// address proves anything to an agent. A certificate proves an identity;
// whether that identity is a member is the cluster file's business.
//
// Keys are ECDSA on P-256. The same authority serves libvirt's and QEMU's TLS
// migration (GnuTLS), whose checks of certificates and whose system-wide crypto
// policies know P-256 everywhere, Ed25519 not everywhere. See Issue for the two
// key-usage bits that libvirt 9 and QEMU 7.2 insist on.
package pki
