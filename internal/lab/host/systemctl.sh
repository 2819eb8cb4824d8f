#!/bin/sh
# The lab's stand-in for systemctl: the calls of the packages' scripts, on the
# services that this host's init keeps. It refuses what it does not know.
set -eu
run=/run/hanok-lab
now= verb= units=
for a; do
	case $a in
	-q | --kill-who=main | -s) ;;
	HUP) [ "$verb" = kill ] || exit 1 ;;
	--now) now=1 ;;
	-*) echo "systemctl: the lab does not know $a" >&2; exit 1 ;;
	*) if [ -z "$verb" ]; then verb=$a; else units="$units $a"; fi ;;
	esac
done

# The unit's service; the unit that stops the VMs at a shutdown is init's own.
service() {
	case $1 in
	hanok-guard | hanok-agent) echo "${1#hanok-}" ;;
	libvirtd) echo libvirtd ;;
	hanok-host-shutdown | hanok-server | virtqemud) ;;
	*) echo "systemctl: the lab does not know the unit $1" >&2; return 1 ;;
	esac
}
running() { [ -e "$run/$1.pid" ]; }
# In steps of 10 ms for 10 s at most, the time in which systemd kills.
until_() { n=0; until "$@"; do n=$((n + 1)); [ $n -lt 1000 ] || return 1; sleep 0.01; done; }
stopped() { ! running "$1"; }
stop() {
	: >"$run/$1.stop"
	if running "$1"; then
		pid=$(cat "$run/$1.pid")
		kill "$pid" || true
		until_ stopped "$1" || { kill -9 "$pid"; until_ stopped "$1"; }
	fi
}
start() {
	rm -f "$run/$1.stop"
	if [ -e /etc/hanok/host ] && [ ! -e /etc/hanok/lab-hold ]; then until_ running "$1"; fi
}

[ "$verb" != daemon-reload ] || exit 0
for u in $units; do
	s=$(service "$u")
	if [ -z "$s" ]; then
		[ "$verb" != is-active ] || exit 3
		continue
	fi
	case $verb in
	enable) ;;
	is-active) running "$s" || exit 3 ;;
	kill) kill -HUP "$(cat "$run/$s.pid")" ;;
	start) start "$s" ;;
	stop) stop "$s" ;;
	restart) stop "$s"; start "$s" ;;
	try-restart) if running "$s"; then stop "$s"; start "$s"; fi ;;
	disable) if [ -n "$now" ]; then stop "$s"; fi ;;
	*) echo "systemctl: the lab does not know $verb" >&2; exit 1 ;;
	esac
done
