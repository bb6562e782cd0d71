#!/usr/bin/env bash
# Writes the bills of material (SPDX, JSON) of both images, and prints their paths:
# dist/NAME-VERSION.spdx.json and dist/NAME-VERSION-softhsm.spdx.json.
#
#   IMAGE, VERSION  as for build.sh, which must have built them
#   SYFT            the syft command
#   DOCKER          the docker command
set -euo pipefail
shopt -s inherit_errexit

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
image=${IMAGE:-kekd}
version=${VERSION:-$(git -C "$root" describe --tags --always --dirty 2>/dev/null || echo dev)}
docker=${DOCKER:-docker}
syft=${SYFT:-syft}
dist=$root/dist

mkdir -p -- "$dist"
tmp=$(mktemp -d)
trap 'rm -rf -- "$tmp"' EXIT
for suffix in '' -softhsm; do
	# A saved image can be read whatever the daemon's version is.
	"$docker" save -o "$tmp/image.tar" "$image:$version$suffix"
	SYFT_CHECK_FOR_APP_UPDATE=false "$syft" scan -q "docker-archive:$tmp/image.tar" \
		--source-name "$image" --source-version "$version$suffix" -o "spdx-json=$tmp/sbom.json"
	# A list without these was not made of what is in the image.
	for package in google.golang.org/grpc github.com/miekg/pkcs11 libc6 ${suffix:+libsofthsm2}; do
		grep -qE "\"name\": ?\"$package\"" "$tmp/sbom.json" || {
			echo "sbom.sh: $package is missing in the bill of $image:$version$suffix" >&2
			exit 1
		}
	done
	file=$dist/${image##*/}-$version$suffix.spdx.json
	mv -- "$tmp/sbom.json" "$file"
	echo "$file"
done
