#!/usr/bin/env bash
# Makes the two images that the Dockerfile builds from where no registry can be
# reached, and prints their names: first BUILDER, then BASE.
#
#   kekd-builder:bookworm   Debian with gcc and git, this machine's Go, and a module
#                           proxy in a directory with what kekd's go.sum names
#   kekd-base:bookworm      Debian, and an apt archive in a directory with the
#                           packages that the Dockerfile takes libraries from
#
# The build itself needs no network then. Only this script does, once: Debian's
# mirror, and the Go module proxy for modules that are not on the machine yet. It
# needs root, for debootstrap.
#
#   base.sh [--refresh]   --refresh fetches Debian anew, for security updates
#
#   KEKD_CACHE            where it keeps Debian, default ~/.cache/kekd
#   KEKD_DEBIAN_MIRROR    default http://deb.debian.org
#   KEKD_CROSS            another architecture to build for (arm64 or amd64), default none
#   EXTRA_PACKAGES        as for build.sh
#   DOCKER, GO            the commands, default docker and go
set -euo pipefail
shopt -s inherit_errexit

suite=bookworm
mirror=${KEKD_DEBIAN_MIRROR:-http://deb.debian.org}
cross=${KEKD_CROSS:-}
docker=${DOCKER:-docker}
go=${GO:-go}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
cache=${KEKD_CACHE:-$HOME/.cache/kekd}/image

say() { echo "base.sh: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# The Dockerfile says which packages; here they are only fetched.
packages=$(sed -nE 's/^ARG (RUNTIME|SOFTHSM)_PACKAGES="(.*)"$/\2/p' "$root/Dockerfile" | tr '\n' ' ')
[[ -n $packages ]] || die "the Dockerfile names no packages"
packages+=${EXTRA_PACKAGES:-}
arch=$(dpkg --print-architecture)
[[ $cross != "$arch" ]] || cross=
tools="gcc git libc6-dev ca-certificates"
case $cross in
'') ;;
amd64) tools+=" gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;;
arm64) tools+=" gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;;
*) die "KEKD_CROSS=$cross: no cross compiler is known for it" ;;
esac

# quietly shows what a command said only when it failed.
quietly() {
	"$@" </dev/null >"$tmp/log" 2>&1 || {
		tail -n 20 -- "$tmp/log" >&2
		local command=$*
		die "failed: ${command%%$'\n'*}"
	}
}

in_debian() {
	quietly env DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$tmp/root" "$@"
}

# debian makes $dir/base.tar and $dir/builder.tar.
debian() {
	local name target
	[[ $(id -u) = 0 ]] || die "debootstrap needs root"
	command -v debootstrap >/dev/null || die "install debootstrap"
	say "fetching Debian $suite into $dir, a minute or two"
	quietly debootstrap --variant=minbase --arch="$arch" "$suite" "$tmp/root" "$mirror/debian"
	# No daemon may start in there.
	printf '#!/bin/sh\nexit 101\n' >"$tmp/root/usr/sbin/policy-rc.d"
	chmod 0755 "$tmp/root/usr/sbin/policy-rc.d"
	cp -L /etc/resolv.conf "$tmp/root/etc/resolv.conf"
	cat >"$tmp/root/etc/apt/sources.list" <<-END
		deb $mirror/debian $suite main
		deb $mirror/debian $suite-updates main
		deb $mirror/debian-security $suite-security main
	END
	in_debian apt-get update -qq
	in_debian apt-get upgrade -y -qq --no-install-recommends

	# apt has checked signatures when it fetched these; who builds takes them from
	# the directory without.
	mkdir "$tmp/root/srv/debs"
	for target in $cross "$arch"; do
		in_debian apt-get update -qq -o "APT::Architecture=$target"
		for name in $packages; do
			in_debian sh -ec 'cd /srv/debs
				apt-get download -qq -o "APT::Architecture=$1" "$2"
				# A name on a mirror has no epoch, and the index speaks of that name.
				for deb in *%3a*; do [ ! -e "$deb" ] || mv "$deb" "${deb%%_*}_${deb#*%3a}"; done
				apt-cache show -o "APT::Architecture=$1" --no-all-versions "$2" | sed "s,^Filename: .*/,Filename: ./," >>Packages' \
				sh "$target" "$name"
		done
	done
	cp "$tmp/root/etc/apt/sources.list" "$tmp/sources"
	cp -r "$tmp/root/var/lib/apt/lists" "$tmp/lists"
	echo 'deb [trusted=yes] file:/srv/debs ./' >"$tmp/root/etc/apt/sources.list"
	pack "$tmp/base.tar"

	cp "$tmp/sources" "$tmp/root/etc/apt/sources.list"
	rm -rf "$tmp/root/var/lib/apt/lists"
	mv "$tmp/lists" "$tmp/root/var/lib/apt/lists"
	# shellcheck disable=SC2086 # several packages
	in_debian apt-get install -y -qq --no-install-recommends $tools
	rm -r "$tmp/root/srv/debs"
	pack "$tmp/builder.tar"

	rm -rf -- "$dir"
	mkdir -- "$dir"
	mv -- "$tmp/base.tar" "$tmp/builder.tar" "$dir/"
	rm -rf --one-file-system -- "$tmp/root"
}

# pack writes the root file system without what a machine or apt left in it.
pack() {
	rm -rf -- "$tmp"/root/var/lib/apt/lists/* "$tmp"/root/var/cache/apt/*
	: >"$tmp/root/etc/resolv.conf"
	tar -C "$tmp/root" --one-file-system --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --numeric-owner -cf "$1" .
	cp -L /etc/resolv.conf "$tmp/root/etc/resolv.conf"
}

# has tells whether the image is there and was made from the same.
has() {
	[[ $("$docker" image inspect -f '{{index .Config.Labels "kekd.base.key"}}' "$1" 2>/dev/null) = "$2" ]]
}

key=$({
	echo "$suite $mirror $arch $cross / $packages / $tools"
	declare -f debian pack
} | sha256sum | cut -c1-16)
dir=$cache/$key

# One at a time; the lock goes with this process, however it ends.
mkdir -p -- "$cache"
exec 9>"$cache/lock"
flock 9
rm -rf --one-file-system -- "$cache"/tmp.* # of runs that were killed: the lock is ours
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" -mtime +30 -exec rm -rf {} +
tmp=$(mktemp -d -- "$cache/tmp.XXXXXX")
# Modules in Go's cache are read-only.
trap '[[ ! -d $tmp/mod ]] || chmod -R u+w -- "$tmp/mod"; rm -rf --one-file-system -- "$tmp"' EXIT

[[ ${1:---refresh} = --refresh ]] || die "unknown argument '$1'"
if [[ ${1:-} = --refresh || ! -f $dir/builder.tar ]]; then
	debian
fi
debian_id=$key-$(stat -c %Y -- "$dir/builder.tar")
age=$((($(date +%s) - $(stat -c %Y -- "$dir/builder.tar")) / 86400))
[[ $age -lt 7 ]] || say "Debian's packages are of $age days ago: base.sh --refresh takes in security updates"

base=kekd-base:$suite
if ! has "$base" "$debian_id"; then
	"$docker" import --change "LABEL kekd.base.key=$debian_id" "$dir/base.tar" "$base" >/dev/null
fi

builder=kekd-builder:$suite
builder_id=$debian_id-$({
	"$go" env GOVERSION
	cat -- "$root/go.mod" "$root/go.sum"
} | sha256sum | cut -c1-16)
if ! has "$builder" "$builder_id"; then
	say "packing Go and kekd's modules"
	# Exactly the modules that the binaries are of, out of this machine's cache where
	# that has them.
	(
		cd -- "$root"
		GOPROXY="file://$("$go" env GOMODCACHE)/cache/download,$("$go" env GOPROXY)"
		export GOPROXY GOMODCACHE=$tmp/mod GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=1
		quietly "$go" list -deps ./cmd/kekd ./cmd/kekctl
	)
	cp -- "$dir/builder.tar" "$tmp/builder.tar"
	tar -C "$("$go" env GOROOT)" --exclude=./test --exclude=./doc --exclude=./api --exclude=./pkg/obj \
		--owner=0 --group=0 --transform='s,^\.,./usr/local/go,' -rf "$tmp/builder.tar" .
	tar -C "$tmp/mod/cache/download" --exclude=./sumdb --exclude='*.lock' \
		--owner=0 --group=0 --transform='s,^\.,./srv/goproxy,' -rf "$tmp/builder.tar" .
	"$docker" import \
		--change "LABEL kekd.base.key=$builder_id" \
		--change 'ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
		--change 'ENV GOPROXY=file:///srv/goproxy' \
		--change 'ENV GOTOOLCHAIN=local' \
		"$tmp/builder.tar" "$builder" >/dev/null
fi
echo "$builder"
echo "$base"
