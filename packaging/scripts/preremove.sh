#!/bin/sh
# Before removal: deb says "remove" or "upgrade", rpm the number of versions
# that stay (0: removal). Nothing stops at an upgrade. A removal leaves the VMs
# running: it takes them off the protected lists, so that no host wants them,
# and only then ends the guard, which disarms the watchdog. If that cannot be
# proven the removal is refused: without it the watchdog would reset this host.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

running() { [ -S /run/hanok/guard.sock ] && hanok-guard status >/dev/null 2>&1; }

if running; then
	hanok vm unprotect --here || {
		echo "hanok: the VMs of this host could not be taken off protection; see hanok status. Nothing was removed." >&2
		exit 1
	}
	hanok-guard may-stop || {
		echo "hanok: nothing was removed." >&2
		exit 1
	}
fi
rm -f /etc/libvirt/hooks/qemu.d/50-hanok
if command -v systemctl >/dev/null && [ ! -d /run/systemd/system ]; then
	systemctl disable -q hanok-host-shutdown hanok-agent hanok-guard || true
fi
rm -f /var/lib/hanok/.units-enabled
if [ -d /run/systemd/system ]; then
	for s in libvirtd virtqemud; do
		systemctl is-active -q "$s" && systemctl kill --kill-who=main -s HUP "$s" || true
	done
	systemctl disable -q hanok-host-shutdown || true # it stops no VM any more: the program is gone
	systemctl disable -q --now hanok-agent || true
	systemctl disable -q --now hanok-guard || true
fi
exit 0
