package libvirt

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"hanok.dev/hanok/internal/hypervisor/domainxml"
	"hanok.dev/hanok/internal/model"
)

// What libvirt adds to a definition, at first and while the domain runs, must
// not look like drift; and the copy kept beside the disks must define the
// same domain again.
func TestKeptDefinition(t *testing.T) {
	r, ctx := newRig(t, Config{}), context.Background()
	path, _ := r.disk()
	rich := fmt.Sprintf(`<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
<interface type='user'><model type='virtio'/></interface>
<serial type='pty'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<graphics type='vnc' autoport='yes' passwd='swordfis'/><memballoon model='virtio'/><panic model='isa'/>`, path)
	vm := model.VMID(uuid.NewString())
	_, err := r.Define(ctx, domainText("rich", vm, 32, rich))
	r.ok(err)
	off, err := r.XML(ctx, vm, true)
	r.ok(err)
	kept, err := domainxml.Normalise([]byte(off))
	r.ok(err)

	d, err := domainxml.Parse(kept)
	r.ok(err)
	if d.VM != vm || d.Name != "rich" || d.Memory != 32 || len(d.Disks) != 2 || d.Disks[0].Source != path {
		t.Errorf("read as %+v", d)
	}
	place := domainxml.Place{Datastores: map[string]model.DatastoreName{t.TempDir() + "/..": "ds1"}}
	if problems := place.Check(d); len(problems) > 0 {
		t.Errorf("not protectable: %+v", problems)
	}

	r.start(vm)
	running, err := r.XML(ctx, vm, true)
	r.ok(err)
	diff, err := domainxml.Drift(kept, []byte(running))
	r.ok(err)
	if len(diff) > 0 {
		t.Errorf("drift of the running domain: %v\n%s", diff, running)
	}
	// The definition of this run has the CPU and defaults written out; all
	// that libvirt makes up for one run must be recognised.
	text, err := r.XML(ctx, vm, false)
	r.ok(err)
	diff, err = domainxml.Drift(kept, []byte(text))
	r.ok(err)
	for _, d := range diff {
		if !strings.HasPrefix(d.Path, "cpu") && !strings.HasPrefix(d.Path, "devices/graphics") && d.Path != "devices/disk[hdc]/driver@type" {
			t.Errorf("drift of this run: %v", d)
		}
	}

	r.ok(r.Kill(ctx, vm))
	r.ok(r.Undefine(ctx, vm))
	_, err = r.Define(ctx, string(kept))
	r.ok(err)
	again, err := r.XML(ctx, vm, true)
	r.ok(err)
	if diff := cmp.Diff(off, again); diff != "" {
		t.Errorf("defined again from the copy: %s", diff)
	}
}
