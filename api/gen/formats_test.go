package gen

import (
	"fmt"
	"sort"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/formats"
)

// Names, numbers and types of all fields, values and methods that clients and
// stored state of version 1 know are still there. More may come.
func TestFormats(t *testing.T) {
	now := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("hanok.v1", func(f protoreflect.FileDescriptor) bool {
		messages(f.Messages(), now)
		for i := range f.Enums().Len() {
			for j := range f.Enums().Get(i).Values().Len() {
				v := f.Enums().Get(i).Values().Get(j)
				now[fmt.Sprintf("%s = %d", v.FullName(), v.Number())] = true
			}
		}
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				m := f.Services().Get(i).Methods().Get(j)
				now[fmt.Sprintf("%s(%s) %s stream=%v", m.FullName(), m.Input().FullName(), m.Output().FullName(), m.IsStreamingServer())] = true
			}
		}
		return true
	})
	recorded := formats.Recorded(t, "1/api.txt", func() ([]byte, error) {
		var all []string
		for l := range now {
			all = append(all, l)
		}
		sort.Strings(all)
		return []byte(strings.Join(all, "\n") + "\n"), nil
	})
	for _, l := range strings.Split(strings.TrimSpace(string(recorded)), "\n") {
		if !now[l] {
			t.Errorf("version 1 has %s, which is gone or was changed", l)
		}
	}
}

func messages(list protoreflect.MessageDescriptors, out map[string]bool) {
	for i := range list.Len() {
		m := list.Get(i)
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			out[fmt.Sprintf("%s %s = %d %v %v", f.FullName(), f.JSONName(), f.Number(), f.Cardinality(), f.Kind())] = true
		}
		messages(m.Messages(), out)
	}
}
