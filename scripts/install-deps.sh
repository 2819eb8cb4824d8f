#!/usr/bin/env bash
# Installs the Debian packages that the lab and its tests need, or with the word
# "bench" those that benchmarks compare with. Does nothing, and needs no network,
# when all are there.
set -euo pipefail

packages=(
	qemu-system-x86 qemu-utils
	libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-driver-lxc libvirt-clients procps
	qemu-guest-agent busybox-static linux-image-cloud-amd64
	nftables dbus-daemon iproute2 fuse3 cpio kmod universal-ctags curl jq
)
if [ "${1:-lab}" = bench ]; then
	packages=(pacemaker-cli-utils)
fi

if [ $# -gt 0 ]; then
	packages=("$@")
fi

missing=()
for p in "${packages[@]}"; do
	if [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" != installed ]; then
		missing+=("$p")
	fi
done
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi
echo "missing packages: ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
	echo "run this script as root to install them" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update
# No service is to start on this machine: every lab host runs its own libvirtd.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	made=1
	trap 'rm -f "$policy"' EXIT
fi
apt-get install -y --no-install-recommends "${missing[@]}"
if [ -n "$made" ]; then
	rm -f "$policy"
fi
