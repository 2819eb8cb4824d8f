package datastore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
)

// Every file but the heartbeats is an envelope around one JSON value:
//
//	hanok <what> <format> <bytes of JSON>\n
//	<JSON>\n
//	crc32c <8 hex digits over everything before this line>\n
//
// The envelope itself never changes, so that a newer format is told apart from
// damage by any version of the program.

// Largest files that are read, in bytes; anything larger is corrupt.
const (
	maxRecord = 4 << 10
	maxList   = 16 << 20
)

const (
	trailerPrefix = "crc32c "
	trailerSize   = len(trailerPrefix) + 8 + 1
	maxFirstLine  = 64
)

// The what of each envelope and the newest format of it that is understood.
const (
	whatHeader = "header"
	whatClaim  = "slot"
	whatLock   = "lock"
	whatList   = "protected"
	whatNote   = "poweredoff"

	formatVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal encodes v; it fails with KindInvalid when the result exceeds max bytes.
func seal(what string, v any, max int) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, &fault{kind: KindInvalid, cause: "encode " + what, err: err}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "hanok %s %d %d\n%s\n", what, formatVersion, len(body), body)
	fmt.Fprintf(&b, "%s%08x\n", trailerPrefix, crc32.Checksum(b.Bytes(), castagnoli))
	if b.Len() > max {
		return nil, faultf(KindInvalid, "%s would take %d bytes, at most %d are allowed", what, b.Len(), max)
	}
	return b.Bytes(), nil
}

// unseal decodes what seal wrote into v. Its faults are KindShort, KindTorn,
// KindCorrupt, KindForeign (an envelope of another kind) and KindFuture.
func unseal(what string, data []byte, v any) error {
	body, err := openEnvelope(what, data)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return &fault{kind: KindCorrupt, cause: "the checksum is right but the content is not", err: err}
	}
	return nil
}

func openEnvelope(what string, data []byte) ([]byte, error) {
	if len(data) == 0 {
		return nil, faultf(KindShort, "the file is empty")
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, faultf(KindTorn, "zero bytes where text must be: part of it was never written")
	}
	end := bytes.IndexByte(data[:min(len(data), maxFirstLine)], '\n')
	if end < 0 {
		if len(data) < maxFirstLine && bytes.HasPrefix(data, []byte("hanok ")) {
			return nil, faultf(KindShort, "only %d bytes are there", len(data))
		}
		return nil, faultf(KindCorrupt, "it does not begin with a first line of this format")
	}
	var gotWhat string
	var version, size int
	first := string(data[:end])
	if n, err := fmt.Sscanf(first, "hanok %s %d %d", &gotWhat, &version, &size); err != nil || n != 3 ||
		first != fmt.Sprintf("hanok %s %d %d", gotWhat, version, size) || size < 0 || size > maxList || version < 1 {
		return nil, faultf(KindCorrupt, "its first line is malformed")
	}
	total := end + 1 + size + 1 + trailerSize
	switch {
	case len(data) < total:
		return nil, faultf(KindShort, "%d of %d bytes are there", len(data), total)
	case len(data) > total:
		return nil, faultf(KindCorrupt, "%d bytes follow its end", len(data)-total)
	}
	covered, trailer := data[:total-trailerSize], data[total-trailerSize:]
	if want := fmt.Sprintf("%s%08x\n", trailerPrefix, crc32.Checksum(covered, castagnoli)); string(trailer) != want {
		return nil, faultf(KindCorrupt, "wrong checksum")
	}
	if gotWhat != what {
		return nil, faultf(KindForeign, "it is a %q file, not %q", gotWhat, what)
	}
	if version > formatVersion {
		return nil, faultf(KindFuture, "format %d, this program knows up to %d", version, formatVersion).
			advise("upgrade hanok on this host")
	}
	return data[end+1 : end+1+size], nil
}
