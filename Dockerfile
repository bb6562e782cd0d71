# kekd's images. The last target, kekd, is the one for production: the HSM vendor's
# PKCS#11 module is mounted into it. The target softhsm has a software token
# besides, for trials. `make image` builds both.
#
# Pin what they are built from by digest, with the one that you have verified:
#
#   make image BUILDER=docker.io/library/golang:1.26-bookworm@sha256:... \
#              BASE=docker.io/library/debian:bookworm-slim@sha256:...
#
# There is no syntax line: it would fetch a frontend from the internet.

# BUILDER compiles: Go, gcc and git.
ARG BUILDER=docker.io/library/golang:1.26-bookworm
# BASE is a Debian with apt, for the libraries at run time. None of its own files
# gets into the image.
ARG BASE=docker.io/library/debian:bookworm-slim

# The binaries. cgo needs a C compiler for the target: where that is another
# architecture than the builder's, Debian's cross compiler, so nothing is emulated.
FROM --platform=$BUILDPLATFORM ${BUILDER} AS build
ARG TARGETARCH
ARG GOPROXY
ARG GOTOOLCHAIN=local
# Set only to compile everything anew, without what earlier builds left.
ARG GOCACHE
WORKDIR /src
COPY . .
# The context lacks what does not make the binaries (.dockerignore). git must not
# take that for a change, or every version would end in -dirty.
RUN if [ -e .git/HEAD ]; then \
      git ls-files -z --deleted -- . ':!go.*' ':!cmd' ':!hsm' ':!internal' ':!keycache' ':!plugin' | \
        git update-index -z --skip-worktree --stdin; \
    fi
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    set -eu; \
    export CGO_ENABLED=1 GOOS=linux GOARCH="${TARGETARCH:-$(go env GOHOSTARCH)}" GOPATH=/go; \
    if [ "$GOARCH" != "$(go env GOHOSTARCH)" ]; then \
      case "$GOARCH" in \
        amd64) gnu=x86-64-linux-gnu CC=x86_64-linux-gnu-gcc ;; \
        arm64) gnu=aarch64-linux-gnu CC=aarch64-linux-gnu-gcc ;; \
        *) echo "no cross compiler is known for $GOARCH: build on such a machine" >&2; exit 1 ;; \
      esac; \
      export CC; \
      if ! command -v "$CC" >/dev/null; then \
        apt-get update -qq; \
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "gcc-$gnu" "libc6-dev-$GOARCH-cross"; \
      fi; \
    fi; \
    go build -trimpath -buildvcs=auto -ldflags='-s -w' -o /out/usr/local/bin/ ./cmd/kekd ./cmd/kekctl; \
    [ -z "${GOCACHE:-}" ] || rm -rf "$GOCACHE"; \
    find /out -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# The libraries, taken from Debian's packages without installing them. The target's
# architecture may be another.
FROM --platform=$BUILDPLATFORM ${BASE} AS packages
ARG TARGETARCH
# What kekd and vendors' modules link. base-files tells scanners which
# distribution they look at.
ARG RUNTIME_PACKAGES="base-files ca-certificates gcc-12-base libc6 libgcc-s1 libssl3 libstdc++6"
ARG SOFTHSM_PACKAGES="libsofthsm2 softhsm2 softhsm2-common"
# What your vendor's module needs besides: make image EXTRA_PACKAGES="zlib1g libcurl4"
ARG EXTRA_PACKAGES=""
WORKDIR /debs
RUN set -eu; \
    arch="${TARGETARCH:-$(dpkg --print-architecture)}"; \
    apt-get update -qq -o APT::Architecture="$arch"; \
    fetch() { \
      install -d -o _apt "$1"; cd "$1"; shift; \
      for name in "$@"; do \
        apt-get download -qq -o APT::Architecture="$arch" "$name" || { echo "Debian's package $name is not to be had for $arch" >&2; exit 1; }; \
      done; \
      cd ..; \
    }; \
    fetch runtime $RUNTIME_PACKAGES $EXTRA_PACKAGES; \
    fetch softhsm $SOFTHSM_PACKAGES
# /rootfs/runtime and /rootfs/softhsm get libraries, licences, and each package's
# entry in the form that distroless images have, by which scanners know them. No time
# is that of the build, so that the same packages make the same layer.
RUN set -eu; \
    for set in runtime softhsm; do \
      root="/rootfs/$set"; all="/all/$set"; status="$root/var/lib/dpkg/status.d"; \
      mkdir -p "$all/usr/lib" "$all/usr/lib64" "$status"; \
      ln -s usr/lib "$all/lib"; ln -s usr/lib64 "$all/lib64"; \
      for deb in "/debs/$set"/*.deb; do \
        dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$all"; \
      done; \
      cd "$all"; \
      find . -path './usr/lib/*/gconv' -prune -o -path './usr/lib/*/audit' -prune -o \
        '(' -type f -o -type l ')' '(' \
          -path './usr/lib/*.so' -o -path './usr/lib/*.so.*' -o -path './usr/lib64/*' -o \
          -path './etc/os-release' -o -path './usr/lib/os-release' -o -path './etc/debian_version' -o \
          -path './usr/share/doc/*/copyright' -o -path './usr/share/doc/libgcc-s1' -o -path './usr/share/doc/libstdc++6' -o \
          -path './usr/share/common-licenses/*' -o \
          -path './usr/bin/softhsm2-util' \
        ')' -print0 | tar -c --null --no-recursion -T - | tar -x -C "$root"; \
      ln -s usr/lib "$root/lib"; \
      for deb in "/debs/$set"/*.deb; do \
        name="$(dpkg-deb -f "$deb" Package)"; \
        dpkg-deb -f "$deb" >"$status/$name"; \
        dpkg-deb -I "$deb" md5sums | while read -r sum path; do \
          [ ! -f "$root/$path" ] || echo "$sum  $path"; \
        done >"$status/$name.md5sums"; \
      done; \
    done; \
    cd /rootfs/runtime; \
    [ ! -d usr/lib64 ] || ln -s usr/lib64 lib64; \
    mkdir -p etc/ssl/certs; \
    find /all/runtime/usr/share/ca-certificates -name '*.crt' | LC_ALL=C sort | xargs sed -e '$a\' >etc/ssl/certs/ca-certificates.crt; \
    echo 'root:x:0:0:root:/nonexistent:/usr/sbin/nologin' >etc/passwd; \
    echo 'kekd:x:65529:65529:kekd:/nonexistent:/usr/sbin/nologin' >>etc/passwd; \
    printf 'root:x:0:\nkekd:x:65529:\n' >etc/group; \
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >etc/nsswitch.conf; \
    install -d -m 0755 etc/kekd; \
    install -d -m 0700 -o 65529 -g 65529 var/lib/kekd; \
    install -d -m 0750 -o 65529 -g 65529 run/kekd; \
    cd /rootfs/softhsm; \
    rm lib; \
    mkdir -p etc/softhsm usr/lib/softhsm; \
    cp /all/softhsm/usr/share/softhsm/softhsm2.conf etc/softhsm/; \
    chmod 0644 etc/softhsm/softhsm2.conf; \
    [ -e usr/lib/softhsm/libsofthsm2.so ] || ln -s "$(find /rootfs/softhsm/usr/lib -name libsofthsm2.so -printf '../%P')" usr/lib/softhsm/libsofthsm2.so; \
    install -d -m 0755 var/lib/softhsm; \
    install -d -m 0700 -o 65529 -g 65529 var/lib/softhsm/tokens; \
    find /rootfs '(' -type d -o -newer /all/runtime/usr/lib/os-release ')' -exec touch -h -r /all/runtime/usr/lib/os-release {} +

# What both images share. kekd writes to its state directory and to its socket's,
# nowhere else: both are mounted, and the root file system may be read-only.
FROM scratch AS runtime
COPY --from=packages /rootfs/runtime/ /
COPY --from=build /out/ /
ENV PATH=/usr/local/bin:/usr/bin
USER 65529:65529
ENTRYPOINT ["/usr/local/bin/kekd"]
CMD ["serve", "--config", "/etc/kekd/config.yaml"]
ARG BUILDER
ARG BASE
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.base.name="$BASE" \
      kekd.builder.name="$BUILDER"

FROM runtime AS softhsm
COPY --from=packages /rootfs/softhsm/ /
LABEL org.opencontainers.image.title="kekd with SoftHSM" \
      org.opencontainers.image.description="kekd with a token in software, for trials only: its keys are files"

FROM runtime AS kekd
LABEL org.opencontainers.image.title="kekd" \
      org.opencontainers.image.description="Kubernetes KMS v2 plugin: Secrets encrypted under a key that never leaves an HSM (PKCS#11)"
