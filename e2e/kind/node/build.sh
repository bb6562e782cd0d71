#!/usr/bin/env bash
# Builds a kind node image from Debian packages and from Kubernetes' binaries, for
# machines that can't pull the published one, and prints its name as the only line
# on stdout. What stands already is not built again. Needs root and a Docker daemon
# (with-docker.sh).
#
# kind's own files for a node (its entry point, its units) are taken from kind's Go
# module at build time.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd -- "$here"

cache=${KEKD_CACHE:-$HOME/.cache/kekd}
suite=bookworm
packages=systemd,systemd-sysv,dbus,containerd,runc,containernetworking-plugins,iptables,nftables,iproute2,conntrack,ethtool,kmod,mount,socat,jq,procps,curl,ca-certificates,softhsm2

bin=$(../../kube/build.sh all)
export GOWORK=off
kind=$(cd ../../kube && go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files
version=$(cd ../../kube && go list -m -f '{{.Version}}' k8s.io/kubernetes)

key=$({
	cat -- "$here"/* ../*/main.go
	echo "$suite $packages $bin $kind"
} | sha256sum | cut -c1-12)
image=kekd-kind-node:$version-$key
if docker image inspect "$image" >/dev/null 2>&1; then
	echo "$image"
	exit
fi

exec 3>&1 1>&2 # the name alone goes to stdout
echo "node/build.sh: building the kind node image $image"
work=$(mktemp -d /tmp/kekd-node.XXXXXX)
container=
cleanup() {
	[[ -z $container ]] || docker rm -fv "$container" >/dev/null 2>&1 || true
	rm -rf -- "$work"
}
trap cleanup EXIT
root=$work/root

# Debian, kept as a tarball: the slowest part, and the same for all versions.
debian=$cache/kind/debian-$(echo "$suite $packages" | sha256sum | cut -c1-12).tar
mkdir -p -- "$cache/kind" "$root"
if [[ ! -e $debian ]]; then
	begun=$SECONDS
	debootstrap --variant=minbase --include="$packages" "$suite" "$root" >"$work/debootstrap.log" 2>&1 || {
		tail -n 20 "$work/debootstrap.log"
		exit 1
	}
	rm -rf -- "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
	tar -C "$root" --numeric-owner -cf "$debian.tmp" .
	mv -- "$debian.tmp" "$debian"
	echo "node/build.sh: debootstrap took $((SECONDS - begun)) s"
else
	tar -C "$root" -xf "$debian"
fi

# kind's files, with the modes of its own image.
cp -r -- "$kind"/etc "$kind"/kind "$kind"/usr "$root"/
find "$root"/kind "$root"/etc/containerd "$root"/etc/default "$root"/etc/sysctl.d "$root"/etc/systemd/system -type f -exec chmod 0644 {} +
chmod 0755 -- "$root"/kind "$root"/kind/bin "$root"/kind/bin/* "$root"/usr/local/bin "$root"/usr/local/bin/*
echo "$version" >"$root"/kind/version

# Services that have no place in a container, as in kind's image.
rm -f -- "$root"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service \
	"$root"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* \
	"$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}*
rm -rf -- "$root"/etc/systemd/system/*.wants
echo 'ReadKMsg=no' >>"$root"/etc/systemd/journald.conf
chroot "$root" systemctl enable kubelet.service containerd.service undo-mount-hacks.service
chroot "$root" systemctl mask systemd-binfmt.service
rm -f -- "$root"/etc/machine-id "$root"/etc/hostname "$root"/etc/resolv.conf

install -m 0755 -- "$bin"/kubeadm "$bin"/kubelet "$bin"/kubectl "$root"/usr/bin/
mkdir -p -- "$root"/etc/kubernetes/manifests "$root"/opt/cni "$root"/etc/cni/net.d
ln -s /usr/lib/cni "$root"/opt/cni/bin
install -m 0644 -- bridge.conflist "$root"/etc/cni/net.d/10-bridge.conflist
ln -sf /usr/bin/containerd "$root"/usr/local/bin/containerd
(cd ../.. && CGO_ENABLED=0 go build -trimpath -o "$root"/usr/local/sbin/runc ./kind/runc)

# containerd: pods as kind's image makes them, and no oom_score_adj that the host
# does not permit.
chroot "$root" ctr oci spec | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
	>"$root"/etc/containerd/cri-base.json
sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$root"/etc/containerd/config.toml
grep -q 'restrict_oom_score_adj = true' "$root"/etc/containerd/config.toml
pause=$(sed -n 's/^ *sandbox_image = "\(.*\)"$/\1/p' "$root"/etc/containerd/config.toml)

# One image for each program of the control plane, under the names that kubeadm
# asks for, and pause under containerd's name too.
"$bin"/kubeadm config images list --kubernetes-version "$version" >"$work/names"
(cd ../.. && CGO_ENABLED=0 go build -trimpath -o "$work/pause" ./kind/pause)
names=("$pause")
one() { # NAME PROGRAM...
	local name=$1 p
	shift
	mkdir -p -- "$work/$1.d/usr/local/bin"
	for p; do
		if [[ $p == pause ]]; then p=$work/pause; else p=$bin/$p; fi
		install -m 0755 -- "$p" "$work/$1.d/usr/local/bin/"
	done
	tar -C "$work/$1.d" --owner=0 --group=0 -c . |
		docker import --change "ENTRYPOINT [\"/usr/local/bin/$1\"]" --change 'ENV PATH=/usr/local/bin' - "$name" >/dev/null
	rm -rf -- "$work/$1.d"
	names+=("$name")
}

for p in kube-apiserver kube-controller-manager kube-scheduler etcd pause; do
	name=$(grep -E "/$p:" "$work/names") || { echo "kubeadm asks for no image of $p"; exit 1; }
	also=()
	[[ $p != etcd ]] || also=(etcdctl etcdutl) # in the published image as well
	one "$name" "$p" "${also[@]}"
done
docker tag "$(grep /pause: "$work/names")" "$pause" # the same image twice where the names differ
docker save -o "$root"/control-plane.tar "${names[@]}"
docker rmi "${names[@]}" >/dev/null

# Into the node's containerd: on a container of this image, since unpacking mounts.
tar -C "$root" --numeric-owner -c . | docker import - kekd-kind-node:building >/dev/null
rm -rf -- "$root"
container=$(docker create --privileged --entrypoint /bin/sh kekd-kind-node:building -euc '
	containerd --log-level warn & pid=$!
	for i in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.2; done
	ctr -n k8s.io images import /control-plane.tar
	rm /control-plane.tar
	kill $pid; wait $pid || true')
docker start -a "$container"
[[ $(docker inspect -f '{{.State.ExitCode}}' "$container") == 0 ]]
docker commit "$container" kekd-kind-node:building >/dev/null
docker build -q -t "$image" - >/dev/null <<-EOF
	FROM kekd-kind-node:building
	ENV container=docker
	STOPSIGNAL SIGRTMIN+3
	ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
EOF
docker rm -v "$container" >/dev/null
container=
docker rmi --no-prune kekd-kind-node:building >/dev/null
docker image ls -q --filter "before=$image" kekd-kind-node | xargs -r docker rmi >/dev/null || true # of older versions

# kind's load balancer, for clusters of several control-plane nodes.
balancer=$(sed -n 's/^const Image = "\(.*\)"$/\1/p' "$kind/../../../pkg/cluster/internal/loadbalancer/const.go")
mkdir -- "$work/balancer"
(cd ../.. && CGO_ENABLED=0 go build -trimpath -o "$work/balancer/envoy" ./kind/envoy)
docker build -q -t "$balancer" -f - "$work/balancer" >/dev/null <<-EOF
	FROM $image
	COPY envoy /usr/local/bin/envoy
	ENTRYPOINT []
EOF
echo "$image" >&3
