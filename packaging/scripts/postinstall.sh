#!/bin/sh
# After unpacking: deb calls it with "configure", rpm with the number of
# versions that are there (1: first, 2: upgrade). No VM is touched: guard and
# agent restart within their leases, and libvirtd only reads its hooks again.
set -e

hanok-guard install-hook /usr/bin/hanok-guard

# Enabled once, also where no systemd runs, as in the making of an image: what is
# disabled by hand later stays so over upgrades.
enabled=/var/lib/hanok/.units-enabled
if [ ! -e $enabled ] && command -v systemctl >/dev/null; then
	systemctl enable -q hanok-guard hanok-agent hanok-host-shutdown
	: >$enabled
fi
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# libvirtd reads hooks at its start and at SIGHUP.
for s in libvirtd virtqemud; do
	systemctl is-active -q "$s" && systemctl kill --kill-who=main -s HUP "$s" || true
done
# A host that is not set up yet starts nothing (ConditionPathExists); one that is
# gets the new programs, guard first. What is disabled and does not run stays so.
wanted() { systemctl is-enabled -q "$1" || systemctl is-active -q "$1"; }
wanted hanok-guard && systemctl restart hanok-guard || true
wanted hanok-agent && systemctl restart hanok-agent || true
# Started, never restarted: its stop is what stops VMs when the host goes down.
wanted hanok-host-shutdown && systemctl start hanok-host-shutdown || true
exit 0
