#!/usr/bin/env bash
# Builds etcd, Kubernetes' binaries or kind, at the versions that go.mod beside
# this file names, into a cache, and prints the directory as the only line on
# stdout. What is cached is not built again; everything else goes to stderr.
#
#   build.sh [NAME...]   default: etcd kube-apiserver kube-controller-manager
#   build.sh all         what a kind node needs besides, and kind itself
#
#   KEKD_CACHE  the cache, default ~/.cache/kekd
#   GO          the go command, default go
set -euo pipefail
shopt -s inherit_errexit

cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

go=${GO:-go}
cache=${KEKD_CACHE:-$HOME/.cache/kekd}/kube
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

# The apiserver's own version comes from linker flags, not from its module; it
# decides what the apiserver emulates, so a wrong one is a different server.
version=$("$go" list -m -f '{{.Version}}' k8s.io/kubernetes)
if [[ ! $version =~ ^v([0-9]+)\.([0-9]+)\.[0-9]+ ]]; then
	echo "build.sh: k8s.io/kubernetes in go.mod has the version '$version', want vX.Y.Z" >&2
	exit 1
fi
stamp=k8s.io/component-base/version
ldflags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=${BASH_REMATCH[1]} -X $stamp.gitMinor=${BASH_REMATCH[2]}"

key=$({
	cat go.mod go.sum
	"$go" env GOVERSION GOARCH
	echo "$ldflags"
} | sha256sum | cut -c1-16)
dir=$cache/$key

names=("$@")
case ${1:-} in
'') names=(etcd kube-apiserver kube-controller-manager) ;;
all) names=(etcd kube-apiserver kube-controller-manager kube-scheduler kubeadm kubelet kubectl etcdctl etcdutl kind) ;;
esac

package() {
	case $1 in
	etcd) echo go.etcd.io/etcd/server/v3 ;;
	etcdctl | etcdutl) echo "go.etcd.io/etcd/$1/v3" ;;
	kind) echo sigs.k8s.io/kind ;;
	*) echo "k8s.io/kubernetes/cmd/$1" ;;
	esac
}

complete() {
	local name
	for name in "${names[@]}"; do [[ -x $dir/$name ]] || return 1; done
}

if ! complete; then
	mkdir -p -- "$cache"
	# One build at a time: two would need the memory twice and gain nothing. The
	# lock goes with this process, however it ends.
	exec 9>"$cache/$key.lock"
	flock 9
fi
if ! complete; then
	rm -rf -- "$cache/$key".tmp.* # of a build that was killed: the lock is ours
	tmp=$(mktemp -d -- "$cache/$key.tmp.XXXXXX")
	trap 'rm -rf -- "$tmp"' EXIT
	mkdir -p -- "$dir"
	for name in "${names[@]}"; do
		[[ ! -x $dir/$name ]] || continue
		echo "build.sh: building $name for Kubernetes $version, some minutes the first time" >&2
		"$go" build -trimpath -ldflags="$ldflags" -o "$tmp/$name" "$(package "$name")" >&2
		mv -T -- "$tmp/$name" "$dir/$name"
	done
fi
echo "$dir"
