package domainxml

import (
	"fmt"
	"strconv"
	"strings"
)

// Normalise returns the form of a definition that is kept beside the VM's
// disks: without what libvirt adds to a running domain, printed in one way.
// It is idempotent. The UUID stays: locks are named after it. The result can
// hold secrets, such as a console's password, and belongs to root only.
//
// Give it the inactive definition where there is one: a live definition has
// host-model CPUs already expanded.
func Normalise(text []byte) ([]byte, error) {
	root, err := normalTree(text)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	root.write(&b, 0)
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("domain XML has %d bytes when it is written out; at most %d are kept", b.Len(), MaxSize)
	}
	return []byte(b.String()), nil
}

func normalTree(text []byte) (*node, error) {
	root, err := parseTree(text)
	if err != nil {
		return nil, err
	}
	live := root.attr("id") != ""
	root.dropAttrs("id")
	for _, name := range []string{"memory", "currentMemory", "maxMemory"} {
		normalAmount(root.child(name))
	}
	root.drop(func(n *node) bool {
		return n.name == "resource" && n.child("partition").value() == "/machine" // libvirt's own default
	})
	for _, label := range root.all("seclabel") {
		if t := label.attr("type"); t == "dynamic" || t == "" {
			label.dropNamed("label", "imagelabel")
		}
	}
	if live {
		root.drop(func(n *node) bool { return n.name == "seclabel" && n.attr("type") != "static" })
	}
	devices := root.child("devices")
	if devices == nil {
		return root, nil
	}
	for _, n := range devices.children {
		n.drop(func(c *node) bool {
			return c.name == "alias" && !strings.HasPrefix(c.attr("name"), "ua-") // "ua-" marks a user's own
		})
		normalDevice(n, live)
	}
	return root, nil
}

// normalAmount writes a size as libvirt does.
func normalAmount(n *node) {
	if n == nil {
		return
	}
	size, err := amount(n)
	if err != nil || size%1024 != 0 {
		return
	}
	n.text = strconv.FormatUint(size>>10, 10)
	n.dropAttrs("unit")
	n.attrs = append([]attr{{"unit", "KiB"}}, n.attrs...)
}

// generated are the directories where libvirt makes sockets and the like.
var generated = []string{"/run/libvirt/", "/var/run/libvirt/", "/var/lib/libvirt/qemu/channel/", "/var/lib/libvirt/qemu/domain-"}

func isGenerated(file string) bool {
	for _, dir := range generated {
		if strings.HasPrefix(file, dir) {
			return true
		}
	}
	return false
}

// normalDevice removes what libvirt fills in while the domain runs.
func normalDevice(n *node, live bool) {
	source, target := n.child("source"), n.child("target")
	switch n.name {
	case "disk":
		if source != nil {
			source.dropAttrs("index")
		}
		if live {
			n.dropNamed("backingStore", "mirror")
		}
		n.drop(func(c *node) bool { // "there is nothing below", as libvirt found
			return c.name == "backingStore" && len(c.attrs) == 0 && len(c.children) == 0
		})
	case "interface":
		if source != nil {
			source.dropAttrs("portid")
			if source.attr("network") != "" {
				source.dropAttrs("bridge")
			}
		}
		n.drop(func(c *node) bool {
			dev := c.attr("dev")
			return c.name == "target" && (strings.HasPrefix(dev, "vnet") || strings.HasPrefix(dev, "macvtap"))
		})
	case "serial", "console", "parallel":
		n.dropAttrs("tty")
		if n.attr("type") == "pty" {
			n.dropNamed("source")
		}
	case "channel":
		if target != nil {
			target.dropAttrs("state")
		}
		n.drop(func(c *node) bool { return c.name == "source" && isGenerated(c.attr("path")) })
	case "graphics":
		if n.attr("autoport") == "yes" {
			n.dropAttrs("port", "tlsPort")
		}
		n.drop(func(c *node) bool { return c.name == "listen" && isGenerated(c.attr("socket")) })
	}
}
