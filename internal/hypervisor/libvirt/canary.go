package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"

	lv "github.com/digitalocean/go-libvirt"

	"hanok.dev/hanok/internal/hypervisor"
)

var errHookNotLoaded = errors.New("libvirtd started a domain without asking the hook; restart libvirtd so that it loads its hooks")

// Canary implements hypervisor.Driver. The domain is transient, would start
// paused, and belongs to a connection that is closed at the end: libvirtd
// destroys it then, should it exist after all.
func (d *Driver) Canary(ctx context.Context, name, token string) error {
	const op = "check libvirt's hook"
	if token == "" {
		return &hypervisor.Error{Op: op, Kind: hypervisor.KindInvalid, Text: "empty token"}
	}
	if err := d.ready(op, ""); err != nil {
		return err
	}
	ctx, cancel := d.limited(ctx, d.cfg.StartTimeout)
	defer cancel()
	c, err := open(ctx, d.cfg.Socket, d.cfg.URI)
	if err != nil {
		return failure(op, "", err)
	}
	defer c.close()
	err = failure(op, "", c.do(ctx, func(l *lv.Libvirt) error { return canary(l, name) }))
	switch {
	case err == nil:
		return &hypervisor.Error{Op: op, Kind: hypervisor.KindOther, Text: errHookNotLoaded.Error(), Err: errHookNotLoaded}
	case hypervisor.KindOf(err) == hypervisor.KindHook:
		var e *hypervisor.Error
		if errors.As(err, &e) && strings.Contains(e.Text, token) {
			return nil
		}
	}
	return err
}

// canary tries to start the domain. It returns nil if that succeeded.
func canary(l *lv.Libvirt, name string) error {
	text, err := canaryXML(l, name)
	if err != nil {
		return err
	}
	dom, err := l.DomainCreateXML(text, lv.DomainStartPaused|lv.DomainStartAutodestroy)
	if err != nil {
		return err
	}
	return l.DomainDestroyFlags(dom, 0)
}

// canaryXML defines a domain without devices of the host's own kind: what a
// definition would get by default.
func canaryXML(l *lv.Libvirt, name string) (string, error) {
	text, err := l.ConnectGetDomainCapabilities(nil, nil, nil, nil, 0)
	if err != nil {
		return "", err
	}
	var caps struct {
		Domain  string `xml:"domain"`
		Machine string `xml:"machine"`
		Arch    string `xml:"arch"`
	}
	if err := xml.Unmarshal([]byte(text), &caps); err != nil {
		return "", fmt.Errorf("read libvirt's domain capabilities: %w", err)
	}
	type osType struct {
		Arch    string `xml:"arch,attr"`
		Machine string `xml:"machine,attr"`
		Type    string `xml:",chardata"`
	}
	out, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"domain"`
		Type    string   `xml:"type,attr"`
		Name    string   `xml:"name"`
		Memory  int      `xml:"memory"` // KiB
		OS      osType   `xml:"os>type"`
	}{Type: caps.Domain, Name: name, Memory: 16384,
		OS: osType{Arch: caps.Arch, Machine: caps.Machine, Type: "hvm"}})
	return string(out), err
}
