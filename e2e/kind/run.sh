#!/usr/bin/env bash
# Builds what the tests in kind need and runs them, with a Docker daemon that answers
# (with-docker.sh). Prints how long each part took.
#
#   run.sh [FLAG...]   flags for go test, such as -run TestKubeadm
#
#   KEKD_NODE_IMAGE    the node image; default the published kindest/node of this
#                      Kubernetes version, or one built here where it can't be pulled
#   PREVIOUS           the version that upgrades come from: a commit or tag, default
#                      the last tag, or else the commit before this one
set -euo pipefail
shopt -s inherit_errexit

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
cd -- "$root"

summary=
begun=$SECONDS
took() {
	summary+=$(printf '  %-20s %4d s' "$1" $((SECONDS - begun)))$'\n'
	begun=$SECONDS
}
previous=
cleanup() {
	[[ -z $previous ]] || rm -rf -- "$previous"
	printf '%s' "$summary"
}
trap cleanup EXIT

KEKD_KUBE_BIN=$(e2e/kube/build.sh all)
took 'Kubernetes, kind'

kubernetes=$(cd e2e/kube && GOWORK=off go list -m -f '{{.Version}}' k8s.io/kubernetes)
if [[ -z ${KEKD_NODE_IMAGE:-} ]]; then
	KEKD_NODE_IMAGE=kindest/node:$kubernetes
	docker image inspect "$KEKD_NODE_IMAGE" >/dev/null 2>&1 || timeout 300 docker pull -q "$KEKD_NODE_IMAGE" >/dev/null 2>&1 || {
		echo "run.sh: $KEKD_NODE_IMAGE can't be pulled, so a node image is built here" >&2
		KEKD_NODE_IMAGE=$("$here/node/build.sh")
	}
fi
took 'node image'

# The same Dockerfile for both versions: older ones have none, or another.
commit=${PREVIOUS:-$(git describe --tags --abbrev=0 2>/dev/null || git rev-parse HEAD~1)}
previous=$(mktemp -d /tmp/kekd-previous.XXXXXX)
git clone -q -- "$root" "$previous/kekd"
git -C "$previous/kekd" checkout -q "$commit"
cp -r -- Dockerfile .dockerignore "$previous/kekd/"
mkdir -p -- "$previous/kekd/e2e"
rm -rf -- "$previous/kekd/e2e/image"
cp -r -- e2e/image "$previous/kekd/e2e/"
IMAGE=kekd VERSION=e2e e2e/image/build.sh
IMAGE=kekd VERSION=e2e-previous "$previous/kekd/e2e/image/build.sh"
took 'images of kekd'

export KEKD_KUBE_BIN KEKD_NODE_IMAGE
export KEKD_SOFTHSM_IMAGE=kekd:e2e-softhsm KEKD_PREVIOUS_IMAGE=kekd:e2e-previous-softhsm
cd e2e
status=0
go test -count=1 ./kind/runc
# Two clusters at a time: they mostly wait.
go test -count=1 -timeout=45m -parallel=2 -v ./kind "$@" || status=$?
took 'tests'
exit "$status"
