#!/usr/bin/env bash
# Runs a command with a Docker daemon that answers: the one that is there, or one of
# its own, whose data stand in the cache and which ends with the command.
#
#   with-docker.sh COMMAND [ARGUMENT...]
set -euo pipefail

if docker info >/dev/null 2>&1; then
	exec "$@"
fi
if [[ $(id -u) != 0 ]]; then
	echo "with-docker.sh: no Docker daemon answers, and only root can start one; start Docker or run this as root" >&2
	exit 1
fi

cache=${KEKD_CACHE:-$HOME/.cache/kekd}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
run=$(mktemp -d /tmp/kekd-docker.XXXXXX)
mkdir -p -- "$cache/docker" "$cache/kind"
# A dockerd of an earlier run that was killed may still hold the data directory.
exec 8>"$cache/docker.lock"
flock 8

(cd -- "$here/.." && CGO_ENABLED=0 go build -trimpath -o "$cache/kind/runc" ./kind/runc) >&2

# dockerd leaves its bridges, its firewall rules and forwarding behind when it ends.
iptables-save >"$run/iptables"
links() { ip -o link show type bridge | cut -d: -f2 | tr -d ' '; }
links >"$run/links"
forwarding=$(</proc/sys/net/ipv4/ip_forward)
undo() {
	local link table
	for link in $(links | grep -vxFf "$run/links"); do ip link delete "$link"; done
	for table in $(iptables-save | sed -n 's/^\*//p'); do
		grep -qx "\*$table" "$run/iptables" || {
			iptables -t "$table" -F
			iptables -t "$table" -X
		}
	done
	[[ ! -s $run/iptables ]] || iptables-restore <"$run/iptables"
	echo "$forwarding" >/proc/sys/net/ipv4/ip_forward
}

# The lock is for this script, not for dockerd's children that may outlive it.
dockerd --data-root "$cache/docker" --exec-root "$run/exec" --pidfile "$run/pid" \
	--host "unix://$run/docker.sock" --group root \
	--add-runtime "kekd=$cache/kind/runc" --default-runtime kekd \
	--log-level warn >"$run/log" 2>&1 8>&- &
dockerd=$!

cleanup() {
	status=$?
	trap - EXIT
	kill "$dockerd" 2>/dev/null || true
	wait "$dockerd" 2>/dev/null || true
	undo || echo "with-docker.sh: not all of dockerd's network is undone" >&2
	umount "$run"/exec/netns/* 2>/dev/null || true
	rm -rf -- "$run"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

export DOCKER_HOST=unix://$run/docker.sock
for ((i = 0; ; i++)); do
	docker info >/dev/null 2>&1 && break
	if ((i == 300)) || ! kill -0 "$dockerd" 2>/dev/null; then
		echo "with-docker.sh: dockerd does not answer; the end of its log:" >&2
		tail -n 20 "$run/log" >&2
		exit 1
	fi
	sleep 0.2
done
"$@"
