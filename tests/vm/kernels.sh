#!/usr/bin/env bash
# kernels.sh LINE FOLDER RECIPE: fetches Debian's newest cloud kernel of a line (6.1, 6.12, 7.3) and leaves
#   FOLDER/VERSION-RECIPE/{vmlinux,release,modules/*.ko}   and the link FOLDER/LINE to it.
# Modules are uncompressed and named in the order in which they are to be loaded.
# Nothing is installed, and the machine's own apt sources, lists and cache are not touched.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/apt.sh"

line=$1 folder=$2 recipe=$3

# The guest loads all of these; those marked ? only where the kernel has them.
modules=(virtio_pci virtio_console virtio_net virtio_rng? tls gcm ccm aesni-intel ghash-clmulni-intel? chacha20poly1305
    chacha? chacha20-x86_64? poly1305-x86_64? wireguard veth dummy bridge sch_ingress cls_bpf act_bpf? sch_netem? af_packet?
    inet_diag tcp_diag udp_diag? tun? br_netfilter? tcp_bbr? sctp? autofs4?)

main() {
    mkdir -p "$folder"
    work=$(mktemp -d "$folder/.new.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    own_apt "$work/apt" bookworm bookworm-security bookworm-backports trixie-backports
    mkdir "$work/deb" "$work/tree"
    case $line in
        6.1) meta=linux-image-cloud-amd64 suite=bookworm ;;
        6.12) meta=linux-image-cloud-amd64 suite=bookworm-backports ;;
        7.3) meta=linux-image-cloud-amd64 suite=trixie-backports ;;
        *) echo "kernels.sh: unknown kernel line $line" >&2; exit 2 ;;
    esac
    local image version
    image=$(newest "$meta" "$suite")
    version=$(apt-cache "${own_apt_options[@]}" show "$image" | sed -n 's/^Version: //p' | sort -V | tail -n1)
    download "$image" "$version"
    local release=${image#linux-image-}
    mkdir "$work/out" "$work/out/modules"
    extract_vmlinux "$(find "$work/tree" -type f -name 'vmlinuz*')" "$work/out/vmlinux"
    copy_modules "$release"
    echo "$release" > "$work/out/release"
    chmod 755 "$work/out"
    rm -rf "${folder:?}/$version-$recipe"
    mv "$work/out" "$folder/$version-$recipe"
    ln -sfn "$version-$recipe" "$work/link"
    mv -T "$work/link" "$folder/$line"
}

# The newest linux-image package that any version of the meta package in this line depends on.
newest() {
    apt-cache "${own_apt_options[@]}" show "$1" | sed -n "s/^Depends:.*\(linux-image-${line//./\\.}\.[^ ]*-cloud-amd64\) (= \([^)]*\)).*/\2 \1/p" |
        sort -V | tail -n1 | cut -d' ' -f2 | grep . ||
        { echo "kernels.sh: no kernel of line $line found in $2" >&2; return 1; }
}

# Since 7.1 Debian splits a kernel: the boot file, the modules and the base files are packages of their own.
download() {
    local image=$1 version=$2 release=${1#linux-image-} package
    local wanted=("$image=$version")
    for package in "linux-binary-$release" "linux-modules-$release" "linux-base-$release"; do
        if apt-cache "${own_apt_options[@]}" show "$package" >/dev/null 2>&1; then wanted+=("$package=$version"); fi
    done
    (cd "$work/deb" && apt-get "${own_apt_options[@]}" -qq download "${wanted[@]}")
    for package in "$work"/deb/*.deb; do dpkg-deb -x "$package" "$work/tree"; done
}

# QEMU starts an ELF kernel directly (PVH), about a second sooner than a bzImage under emulation.
extract_vmlinux() {
    local magic tool offset
    while read -r magic tool; do
        while read -r offset; do
            # The stream is followed by other bytes, about which every one of these tools complains.
            { tail -c "+$((offset + 1))" "$1" | $tool > "$2"; } 2>/dev/null || true
            if [ "$(head -c 4 "$2" | tail -c 3)" = ELF ]; then return; fi
        done < <(LC_ALL=C grep -abobP "$magic" "$1" | cut -d: -f1)
    done <<'MAGICS'
\x28\xb5\x2f\xfd zstd -dc
\xfd7zXZ\x00 xz -dc --single-stream
\x02\x21\x4c\x18 lz4 -dc
\x1f\x8b\x08 gzip -dc
MAGICS
    echo "kernels.sh: found no kernel inside $1" >&2
    return 1
}

copy_modules() {
    local release=$1 module name path order=100
    # Debian 13 packages keep modules below /usr; modprobe looks below /lib.
    if [ ! -e "$work/tree/lib" ]; then ln -s usr/lib "$work/tree/lib"; fi
    depmod -b "$work/tree" "$release" 2>/dev/null
    for module in "${modules[@]}"; do
        name=${module%\?}
        if ! modprobe -S "$release" -d "$work/tree" --show-depends "$name" > "$work/insmod" 2>"$work/error"; then
            if [ "$name" != "$module" ]; then continue; fi
            echo "kernels.sh: $release has no module $name: $(cat "$work/error")" >&2
            return 1
        fi
        while read -r _ path _; do
            name=$(basename "$path"); name=${name%.xz}
            if compgen -G "$work/out/modules/*-$name" > /dev/null; then continue; fi
            case $path in
                *.xz) xz -dc "$path" > "$work/out/modules/$order-$name" ;;
                *) cp "$path" "$work/out/modules/$order-$name" ;;
            esac
            order=$((order + 1))
        done < <(grep '^insmod' "$work/insmod")
    done
}

main
