#!/usr/bin/env bash
# Makes dist/hanok_VERSION_ARCH.deb and dist/hanok-VERSION.ARCH.rpm from bin/.
set -euo pipefail
version=${1:?version}
version=${version#v}
# A version that both formats order rightly begins with a digit and has no "-".
case $version in [0-9]*) ;; *) version=0.0.0~$version ;; esac
version=${version//-/+}
mkdir -p dist
for format in deb rpm; do
	ARCH=$(go env GOARCH) VERSION=$version go tool -modfile=packaging/tools.mod nfpm package \
		--config packaging/nfpm.yaml --packager "$format" --target dist/
done
