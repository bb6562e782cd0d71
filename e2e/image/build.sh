#!/usr/bin/env bash
# Builds kekd's images from the Dockerfile, and prints their names and sizes.
#
#   build.sh               IMAGE:VERSION and IMAGE:VERSION-softhsm
#   build.sh reproduce     builds the first of them twice from nothing, under other
#                          names, and fails unless binaries and layers are the same
#
#   IMAGE, VERSION         the name, default kekd, and the tag, default git describe
#   BUILDER, BASE          what the Dockerfile builds from, perhaps with @sha256:...;
#                          default what it says. Where no registry can be reached
#                          e2e/image/base.sh makes both, unless one was set.
#   OFFLINE=1              doesn't ask a registry
#   PLATFORM               linux/amd64 or linux/arm64, default the machine's
#   EXTRA_PACKAGES         Debian's packages with what the vendor's module links besides
#   BUILDFLAGS             more flags for docker build, as --network=host
#   DOCKER                 the docker command, with BuildKit
set -euo pipefail
shopt -s inherit_errexit

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
image=${IMAGE:-kekd}
version=${VERSION:-$(git -C "$root" describe --tags --always --dirty 2>/dev/null || echo dev)}

say() { echo "build.sh: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# A docker command of today builds by the buildx plugin, an older one by itself. A
# machine may have both, and not the plugin.
builds() { DOCKER_BUILDKIT=1 "$1" build --help >/dev/null 2>&1; }
docker=${DOCKER:-docker}
if ! builds "$docker"; then
	found=
	if [[ -z ${DOCKER:-} ]]; then
		while read -r other; do
			if builds "$other"; then
				found=$other
				break
			fi
		done < <(type -ap docker)
	fi
	[[ -n $found ]] || die "'$docker build' does not work with BuildKit: install docker and its buildx plugin, or set DOCKER"
	docker=$found
fi
"$docker" info >/dev/null 2>&1 || die "no docker daemon answers: start one, or set DOCKER_HOST"
export DOCKER=$docker DOCKER_BUILDKIT=1

named() { sed -n "s/^ARG $1=//p" "$root/Dockerfile"; }
# there tells whether an image is here or can be had, in a few seconds.
there() {
	"$docker" image inspect "$1" >/dev/null 2>&1 || timeout 10 "$docker" manifest inspect "$1" >/dev/null 2>&1
}
builder=${BUILDER:-$(named BUILDER)}
base=${BASE:-$(named BASE)}
flags=()
if [[ -z ${BUILDER:-}${BASE:-} ]]; then
	if [[ ${OFFLINE:-} = 1 ]] || ! { there "$builder" && there "$base"; }; then
		say "building from bases made here (e2e/image/base.sh): ${OFFLINE:+OFFLINE=1, }not from $builder and $base"
		KEKD_CROSS=${PLATFORM:+${PLATFORM#linux/}} "$here/base.sh" >/dev/null
		builder=kekd-builder:bookworm base=kekd-base:bookworm
		flags+=(--network=none)
	fi
fi

# Times in the image are the commit's, so that the same commit makes the same image.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}
flags+=(
	--build-arg "BUILDER=$builder"
	--build-arg "BASE=$base"
	--build-arg "VERSION=$version"
	--build-arg "REVISION=$(git -C "$root" describe --match= --always --abbrev=0 --dirty 2>/dev/null || echo unknown)"
	--build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH"
	--build-arg "CREATED=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)"
)
for name in EXTRA_PACKAGES GOPROXY HTTP_PROXY HTTPS_PROXY NO_PROXY; do
	[[ -z ${!name:-} ]] || flags+=(--build-arg "$name")
done
[[ -z ${PLATFORM:-} ]] || flags+=(--platform "$PLATFORM")
read -ra more <<<"${BUILDFLAGS:-}"
flags+=("${more[@]}")

build() { # TARGET NAME FLAGS...
	local target=$1 name=$2
	shift 2
	"$docker" build --progress=plain --target "$target" --tag "$name" "${flags[@]}" "$@" "$root" >"$log" 2>&1 || {
		tail -n 40 -- "$log" >&2
		die "docker build of $name failed"
	}
}

log=$(mktemp)
trap 'rm -f -- "$log"' EXIT

case ${1:-} in
'')
	build kekd "$image:$version"
	build softhsm "$image:$version-softhsm"
	for name in "$image:$version" "$image:$version-softhsm"; do
		size=$("$docker" image inspect -f '{{.Size}}' "$name")
		echo "$name $((size / 1000000)) MB"
	done
	;;
reproduce)
	dir=$(mktemp -d)
	trap 'rm -rf -- "$log" "$dir"; "$docker" image rm -f kekd-reproduce:1 kekd-reproduce:2 >/dev/null 2>&1 || true' EXIT
	for n in 1 2; do
		# What the compiler remembers would make the second build no build.
		build kekd "kekd-reproduce:$n" --no-cache --build-arg GOCACHE=/tmp/go-build
		"$docker" image inspect -f '{{range .RootFS.Layers}}{{println "layer" .}}{{end}}' "kekd-reproduce:$n" | sed '/^$/d' >"$dir/$n"
		container=$("$docker" create "kekd-reproduce:$n")
		for program in kekd kekctl; do
			"$docker" cp "$container:/usr/local/bin/$program" - | tar -xO | sha256sum | sed "s/-/$program/" >>"$dir/$n"
		done
		"$docker" rm "$container" >/dev/null
	done
	cat -- "$dir/1"
	diff -- "$dir/1" "$dir/2" >&2 || die "two builds of $version differ"
	echo "two builds of $version are the same"
	;;
*) die "unknown argument '$1'" ;;
esac
