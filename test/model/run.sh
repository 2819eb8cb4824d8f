#!/usr/bin/env bash
# Checks the models of the protocol with Spin: every line of checks.txt, two at a
# time, each over all states that can be reached. Exit status 0: no `check` has
# an error, and every `break` has the error it names.
#   run.sh [NAME...]   only these checks; KEEP=1 keeps the error trails
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap '[ -n "${KEEP:-}" ] && echo "kept: $work" || rm -rf "$work"' EXIT

one() { # KIND NAME MODEL REST...
	local kind=$1 name=$2 model=$3 want="" flags rule=() dir start out states verdict
	shift 3
	if [ "$kind" = break ]; then
		want=$1 rule=("-D$name=1")
		shift
	fi
	flags=("$@")
	dir=$work/$name
	mkdir "$dir"
	cd "$dir"
	start=$SECONDS
	spin -a "${rule[@]}" "${flags[@]}" "$here/$model.pml" >spin.out 2>&1 || { echo "FAIL  $name: spin: $(head -1 spin.out)"; return 1; }
	gcc -O2 -w -DSAFETY -DNOREDUCE -DMEMLIM=4096 -o pan pan.c || { echo "FAIL  $name: gcc"; return 1; }
	timeout "${LIMIT:-600}" ./pan -m1000000 -w24 >out 2>&1 || true
	out=$(grep -oE 'assertion violated .*|error: .*|out of memory|max search depth too small' out | head -1 || true)
	states=$(grep -oE '^ *[0-9.e+]+ states, stored' out | head -1 | sed 's,states.*,,; s, ,,g' || true)
	verdict=FAIL
	if [ "$kind" = check ]; then
		[ -z "$out" ] && [ -n "$states" ] && verdict=ok
	else
		[[ "$out" == *"($want==0)"* ]] && verdict=ok
	fi
	printf '%-5s %-5s %-24s %10s states %4ds  %s\n' "$verdict" "$kind" "$name" "${states:-?}" $((SECONDS - start)) "${out:-no error}"
	[ "$verdict" = ok ]
}

bad=0
# Every rule of a model has its `break`; NO_BEFORE_THAW is the one that nothing
# needs (docs/model.md).
for model in "$here"/*.pml; do
	for rule in $(sed -n 's/^#ifndef \(NO_[A-Z_]*\).*/\1/p' "$model"); do
		if [ "$rule" != NO_BEFORE_THAW ] && ! grep -qE "^break +$rule +$(basename "$model" .pml) " "$here/checks.txt"; then
			echo "FAIL  $rule of $(basename "$model"): no line of checks.txt takes it away" >&2
			bad=1
		fi
	done
done
running=0
while read -r kind name rest; do
	case $kind in check | break) ;; *) continue ;; esac
	if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
	if [ $running -ge "${JOBS:-2}" ]; then
		wait -n || bad=1
		running=$((running - 1))
	fi
	# shellcheck disable=SC2086
	one "$kind" "$name" $rest &
	running=$((running + 1))
done <"$here/checks.txt"
while [ $running -gt 0 ]; do
	wait -n || bad=1
	running=$((running - 1))
done
if [ $bad -ne 0 ]; then
	echo "the model and its checks do not agree" >&2
	exit 1
fi
echo "all checks hold: no error with every rule, and the named error without each"
