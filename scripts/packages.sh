#!/usr/bin/env bash
# Makes deb and rpm of hanok and hanok-server in dist/, or the directory that
# follows the version, from bin/.
set -euo pipefail
version=${1:?version}
out=${2:-dist}
version=${version#v}
# A version that both formats order rightly is numbers with dots, and has no "-";
# the hash of a tree without a tag is neither, whatever it begins with.
case $version in [0-9]*.[0-9]*) ;; *) version=0.0.0~$version ;; esac
version=${version//-/+}
mkdir -p "$out"
export VERSION=$version ARCH
ARCH=$(go env GOARCH)
for config in packaging/nfpm.yaml packaging/nfpm-server.yaml; do
	for format in deb rpm; do
		go tool -modfile=packaging/tools.mod nfpm package --config "$config" --packager "$format" --target "$out/"
	done
done
