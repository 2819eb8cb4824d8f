package access

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
)

// methods are all methods of the API.
func methods() map[string]protoreflect.MethodDescriptor {
	out := map[string]protoreflect.MethodDescriptor{}
	for _, f := range []protoreflect.FileDescriptor{hanokv1.File_hanok_v1_inventory_proto, hanokv1.File_hanok_v1_config_proto, hanokv1.File_hanok_v1_operations_proto} {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				m := f.Services().Get(i).Methods().Get(j)
				out[string(m.Name())] = m
			}
		}
	}
	return out
}

func TestEveryMethodSaysItsRole(t *testing.T) {
	for name, m := range methods() {
		o := m.Options().ProtoReflect()
		if !o.Has(hanokv1.E_Role.TypeDescriptor()) {
			t.Errorf("%s does not say which role it needs", name)
		}
	}
}

func TestCheck(t *testing.T) {
	const viewer, operator, admin = hanokv1.Role_ROLE_VIEWER, hanokv1.Role_ROLE_OPERATOR, hanokv1.Role_ROLE_ADMINISTRATOR
	all := methods()
	for _, tt := range []struct {
		name            string
		p               *Principal
		method, cluster string
		want            connect.Code // 0: let in
	}{
		{"nobody", nil, "ListVMs", "", connect.CodeUnauthenticated},
		{"viewer reads", &Principal{Role: viewer}, "ListVMs", "", 0},
		{"viewer writes", &Principal{Role: viewer}, "StartVM", "c", connect.CodePermissionDenied},
		{"operator acts", &Principal{Role: operator}, "StartVM", "c", 0},
		{"operator configures", &Principal{Role: operator}, "ApplyConfig", "c", connect.CodePermissionDenied},
		{"administrator", &Principal{Role: admin}, "ApplyConfig", "c", 0},
		{"of one cluster, there", &Principal{Clusters: map[string]hanokv1.Role{"c": operator}}, "StartVM", "c", 0},
		{"of one cluster, elsewhere", &Principal{Clusters: map[string]hanokv1.Role{"c": operator}}, "StartVM", "d", connect.CodePermissionDenied},
		{"of one cluster, reads all", &Principal{Clusters: map[string]hanokv1.Role{"c": operator}}, "ListVMs", "", 0},
		{"of one cluster, reads another", &Principal{Clusters: map[string]hanokv1.Role{"c": operator}}, "ListVMs", "d", connect.CodePermissionDenied},
		{"of one cluster, the whole", &Principal{Clusters: map[string]hanokv1.Role{"c": admin}}, "Backup", "", connect.CodePermissionDenied},
		{"without any role", &Principal{}, "ListVMs", "", connect.CodePermissionDenied},
	} {
		err := Check(As(t.Context(), tt.p), all[tt.method], tt.cluster)
		if got := connect.CodeOf(err); err == nil && tt.want != 0 || err != nil && got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestIdentifyKeepsTheReason(t *testing.T) {
	why := errors.New("the token has expired")
	h := Identify(AuthenticatorFunc(func(*http.Request) (*Principal, error) { return nil, why }), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if err := Check(r.Context(), methods()["ListVMs"], ""); connect.CodeOf(err) != connect.CodeUnauthenticated || !errors.Is(err, why) {
			t.Errorf("%v", err)
		}
	}))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
}
