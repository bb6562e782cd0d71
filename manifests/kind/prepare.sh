#!/usr/bin/env bash
# Makes a directory of all that kind.yaml mounts: configuration, PIN, a SoftHSM token
# with the first KEK, manifests, and the image.
#
#   sudo ./prepare.sh DIRECTORY [IMAGE]
#
# IMAGE is the one with SoftHSM (kekd:dev-softhsm), in the local Docker. Needs docker
# and kubectl, and root, since kekd's files belong to kekd's user.
set -euo pipefail

[[ $# == 1 || $# == 2 ]] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
manifests=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
image=${2:-kekd:dev-softhsm}
user=65529

install -d -- "$1"
cd -- "$1"
[[ ! -e tokens ]] || { echo "prepare.sh: there is a token in $PWD already; remove the directory or name another" >&2; exit 1; }
install -d -o "$user" -g "$user" -m 0700 etc-kekd state audit tokens
install -d -m 0700 kms

install -m 0644 -- "$manifests/config/softhsm.yaml" etc-kekd/config.yaml
install -m 0644 -- "$manifests/config/softhsm2.conf" etc-kekd/softhsm2.conf
install -m 0600 -o "$user" -g "$user" /dev/null etc-kekd/pin
pin=$(od -An -N8 -tu8 /dev/urandom | tr -d ' ')
printf '%s' "$pin" >etc-kekd/pin

install -m 0600 -- "$manifests/kube-apiserver/encryption-2-encrypt.yaml" kms/encryption.yaml
install -m 0644 -- "$manifests/kind/kind.yaml" "$manifests/kind/kubelet.conf" .
kubectl kustomize "$manifests/static-pod/overlays/softhsm" |
  sed "s|image: kekd:dev-softhsm\$|image: $image|" >kekd.yaml
docker save --output image.tar "$image"

kekd() { # PROGRAM ARGUMENT... as kekd's user, with kekd's files
  docker run --rm --network none --user "$user:$user" --env SOFTHSM2_CONF=/etc/kekd/softhsm2.conf \
    --volume "$PWD/etc-kekd:/etc/kekd:ro" --volume "$PWD/state:/var/lib/kekd" \
    --volume "$PWD/audit:/var/log/kekd" --volume "$PWD/tokens:/var/lib/softhsm/tokens" --entrypoint "$1" "$image" "${@:2}"
}
# The PIN shows in the list of processes for a moment; the token is for trials.
kekd softhsm2-util --init-token --free --label kekd --pin "$pin" --so-pin "$pin" >/dev/null
kekd kekctl audit key create --yes
kekd kekctl key create --yes
echo "Now: cd $PWD && kind create cluster --config kind.yaml"
