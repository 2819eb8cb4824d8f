#!/bin/sh
# PID 1 of a lab guest.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for m in /modules/*.ko; do insmod "$m" || echo "insmod $m failed"; done
echo "guest: up"
for p in /sys/class/virtio-ports/*; do
	if [ "$(cat "$p/name" 2>/dev/null)" = org.qemu.guest_agent.0 ]; then
		qemu-ga -m virtio-serial -p "/dev/${p##*/}" -f /run/qga.pid -t /run </dev/null >/dev/null 2>&1 &
	fi
done
while :; do
	hanok-lab-guest
	sleep 1
done
