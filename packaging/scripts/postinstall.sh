#!/bin/sh
# After unpacking: deb calls it with "configure", rpm with the number of
# versions that are there (1: first, 2: upgrade). No VM is touched: guard and
# agent restart within their leases, and libvirtd only reads its hooks again.
set -e

hanok-guard install-hook /usr/bin/hanok-guard

[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# libvirtd reads hooks at its start and at SIGHUP.
for s in libvirtd virtqemud; do
	systemctl is-active -q "$s" && systemctl kill --kill-who=main -s HUP "$s" || true
done
systemctl enable -q hanok-guard hanok-agent hanok-host-shutdown
# A host that is not set up yet starts nothing (ConditionPathExists); one that
# is gets the new programs, guard first.
systemctl restart hanok-guard || true
systemctl restart hanok-agent || true
# Started, never restarted: its stop is what stops VMs when the host goes down.
systemctl start hanok-host-shutdown || true
exit 0
