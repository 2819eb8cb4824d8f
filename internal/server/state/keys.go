package state

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/url"
	"strings"

	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/store"
)

// The kinds of keys.
const (
	kindConfig    = "config"
	kindVersion   = "version"
	kindForeign   = "foreign"
	kindCluster   = "cluster"
	kindHost      = "host"
	kindVM        = "vm"
	kindDatastore = "datastore"
	kindEvent     = "event"
	kindCursor    = "cursor"
	kindFloor     = "floor"
	kindTask      = "task"
	kindDone      = "done"
	kindUser      = "user"
	kindUsers     = "users"
	kindToken     = "token"
	kindSession   = "session"
	kindSetUp     = "setup"
	kindAudit     = "audit"
	kindAuthority = "authority"
	kindTrust     = "trust"
	kindByHand    = "byhand"
	kindEnrol     = "enrol"
	kindHostTrust = "hosttrust"
)

// key joins parts; what comes from outside is escaped, so that no name leads
// out of its place.
func key(kind string, parts ...string) string {
	var b strings.Builder
	b.WriteString(kind)
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}

// below is the prefix of all keys under parts.
func below(kind string, parts ...string) string { return key(kind, parts...) + "/" }

// split is the reverse of key.
func split(k string) (kind string, parts []string) {
	all := strings.Split(k, "/")
	for _, p := range all[1:] {
		s, err := url.PathUnescape(p)
		if err != nil {
			s = p
		}
		parts = append(parts, s)
	}
	return all[0], parts
}

// ConfigKey, TaskKey and their kin name single objects.
func ConfigKey(cluster string) string { return key(kindConfig, cluster) }

// VersionKey names one version of a cluster file.
func VersionKey(cluster string, version uint64) string {
	return key(kindVersion, cluster, fmt.Sprintf("%020d", version))
}

// VersionPrefix is above all versions of a cluster.
func VersionPrefix(cluster string) string { return below(kindVersion, cluster) }

// ForeignKey names what the hosts of a cluster have of their own.
func ForeignKey(cluster string) string { return key(kindForeign, cluster) }

// ClusterKey names the account of a cluster.
func ClusterKey(cluster string) string { return key(kindCluster, cluster) }

// HostKey names the account of a host.
func HostKey(cluster, host string) string { return key(kindHost, cluster, host) }

// VMKey names the account of a VM.
func VMKey(cluster, id string) string { return key(kindVM, cluster, id) }

// DatastoreKey names the account of a datastore.
func DatastoreKey(cluster, name string) string { return key(kindDatastore, cluster, name) }

// EventKey names an event.
func EventKey(cluster, id string) string { return key(kindEvent, cluster, id) }

// EventPrefix is above all events of a cluster, or of all.
func EventPrefix(cluster string) string {
	if cluster == "" {
		return kindEvent + "/"
	}
	return below(kindEvent, cluster)
}

// CursorKey names how far a stream of events has been read.
func CursorKey(cluster, stream string) string { return key(kindCursor, cluster, stream) }

// FloorKey names the time up to which events of a cluster were removed.
func FloorKey(cluster string) string { return key(kindFloor, cluster) }

// TaskKey names a task.
func TaskKey(id string) string { return key(kindTask, id) }

// DoneKey names a request that was carried out.
func DoneKey(principal, idempotency string) string { return key(kindDone, principal, idempotency) }

// DonePrefix is above all of them.
const DonePrefix = kindDone + "/"

// UserKey names a user, UserPrefix is above all, and UsersKey is written with
// every change of them.
func UserKey(name string) string { return key(kindUser, name) }

// The prefixes and single keys of accounts.
const (
	UserPrefix    = kindUser + "/"
	UsersKey      = kindUsers
	TokenPrefix   = kindToken + "/"
	SessionPrefix = kindSession + "/"
	SetUpKey      = kindSetUp
)

// TokenKey names an API token; TokensOf is above all of a user.
func TokenKey(userID, id string) string { return key(kindToken, userID, id) }

// TokensOf is above all tokens of a user.
func TokensOf(userID string) string { return below(kindToken, userID) }

// SessionKey names a session.
func SessionKey(userID, id string) string { return key(kindSession, userID, id) }

// SessionsOf is above all sessions of a user.
func SessionsOf(userID string) string { return below(kindSession, userID) }

// AuthorityKey is where the authority of servers' addresses is kept.
const AuthorityKey = kindAuthority

// TrustKey names the authorities of a cluster, by its id: they stay when the
// cluster is removed and added again, because its hosts go on trusting them.
func TrustKey(clusterID string) string { return key(kindTrust, clusterID) }

// ByHandKey names the certificate, made by hand, that all servers use towards the
// hosts of a cluster while they do not have its authority.
func ByHandKey(clusterID string) string { return key(kindByHand, clusterID) }

// EnrolKey names the one-time token of a host.
func EnrolKey(clusterID, host string) string { return key(kindEnrol, clusterID, host) }

// EnrolPrefix is above all of them.
const EnrolPrefix = kindEnrol + "/"

// EnrolPrefixOf is above those of a cluster.
func EnrolPrefixOf(clusterID string) string { return below(kindEnrol, clusterID) }

// HostTrustKey names what a host says of its trust.
func HostTrustKey(cluster, host string) string { return key(kindHostTrust, cluster, host) }

// HostTrustPrefix is above those of a cluster.
func HostTrustPrefix(cluster string) string { return below(kindHostTrust, cluster) }

// The kinds of entries of the audit log, which are kept apart so that attempts
// of strangers push no change out.
const (
	AuditChange  = "change"
	AuditRefused = "refused"
)

// AuditKey names an entry of the audit log.
func AuditKey(kind, id string) string { return key(kindAudit, kind, id) }

// AuditPrefix is above all entries of a kind, or of all kinds.
func AuditPrefix(kind string) string {
	if kind == "" {
		return kindAudit + "/"
	}
	return below(kindAudit, kind)
}

// ofCluster are the prefixes of all that belongs to one cluster.
func ofCluster(cluster string) []string {
	var out []string
	for _, k := range []string{kindVersion, kindHost, kindVM, kindDatastore, kindEvent, kindCursor, kindHostTrust} {
		out = append(out, below(k, cluster))
	}
	return out
}

// Encode writes an object as a value.
func Encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("a message that cannot be written: %v", err)) // only invalid UTF-8, which callers clean
	}
	return b
}

// Decode reads a value; the error names the key.
func Decode[M any, P interface {
	*M
	proto.Message
}](key string, value []byte) (P, error) {
	m := P(new(M))
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, fmt.Errorf("the state's %s is damaged: %w; restore a backup", key, err)
	}
	return m, nil
}

// EncodeConfig is Encode for a version of a cluster file, compressed.
func EncodeConfig(v *hanokv1.ConfigVersion) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(Encode(v)) // a buffer takes all
	_ = z.Close()
	return b.Bytes()
}

// DecodeConfig is the reverse.
func DecodeConfig(key string, value []byte) (*hanokv1.ConfigVersion, error) {
	z, err := gzip.NewReader(bytes.NewReader(value))
	if err != nil {
		return nil, fmt.Errorf("the state's %s is damaged: %w; restore a backup", key, err)
	}
	b, err := io.ReadAll(io.LimitReader(z, 4*config.MaxSize))
	if err != nil {
		return nil, fmt.Errorf("the state's %s is damaged: %w; restore a backup", key, err)
	}
	return Decode[hanokv1.ConfigVersion](key, b)
}

// Forget adds to a change the removal of all that belongs to a cluster.
func Forget(t *store.Txn, cluster string) {
	t.Delete(ConfigKey(cluster)).Delete(ForeignKey(cluster)).Delete(ClusterKey(cluster)).Delete(FloorKey(cluster))
	for _, p := range ofCluster(cluster) {
		t.DeleteAll(p)
	}
}
