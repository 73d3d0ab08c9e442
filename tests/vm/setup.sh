#!/usr/bin/env bash
# Makes ready what building and testing need on a Debian 12 machine with Rust: packages, bpf-linker,
# promtool, three kernels, a root image and the guest's PID 1. Installs only what is missing, so it does nothing
# and needs no network when everything is there. Needs root, or sudo, for apt and for the image.
#
# What is downloaded or built is kept in $UNDERSEAL_CACHE, by default ~/.cache/underseal, and is shared
# by all clones on the machine. Everything is made beside its place and renamed: nothing is half there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/apt.sh"
root=$(cd "$here/../.." && pwd)
cache=${UNDERSEAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/underseal}
target=${CARGO_TARGET_DIR:-target}

packages=(
    # a linker and a C compiler for the crates with C in them, and what cargo fetches with
    gcc g++ libc6-dev make ca-certificates git
    # BPF: a rustc with a core library for bpfel-unknown-none, and the LLVM that bpf-linker links
    rustc-web libstd-rust-web-dev-bpf llvm-22 llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev
    # virtual machines: what unpacks kernels and makes the image (QEMU: see install_qemu)
    mmdebstrap debian-archive-keyring zstd xz-utils lz4 kmod e2fsprogs
    # checks of bpf/, of the scripts here, of systemd/ and nixos/
    rust-web-clippy shellcheck systemd nix-bin
)
linker_version=0.13.0

main() {
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock -n 9 || { say "another setup is running, waiting for it"; flock 9; }
    install_packages
    install_qemu
    install_linker
    install_promtool
    install_kernels
    build_image
    build_guest
    say "ready (cache: $cache)"
}

say() { printf 'setup: %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    if [ ${#missing[@]} = 0 ]; then say "packages: present"; return; fi
    say "packages: installing ${missing[*]}"
    local apt=(as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
}

# Debian 12's own QEMU, 7.2, corrupts the memory of guests with two processors when it emulates (seen with kernel
# 6.12: oopses in the allocator); 10 does not. It comes from bookworm-backports and takes no library with it.
install_qemu() {
    local version
    version=$({ qemu-system-x86_64 --version 2>/dev/null || true; } | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')
    if [ "${version:-0}" -ge 10 ]; then say "QEMU: present"; return; fi
    say "QEMU: installing from bookworm-backports"
    own_apt "$cache/apt" bookworm bookworm-security bookworm-backports
    as_root env DEBIAN_FRONTEND=noninteractive apt-get "${own_apt_options[@]}" -o DPkg::Lock::Timeout=300 \
        install -y --no-install-recommends {qemu-system-{x86,common,data},seabios}/bookworm-backports
    rm -rf "$cache/apt"
}

# bpf-linker must be linked with the LLVM that is at least as new as the one inside rustc-web.
install_linker() {
    local bin=${CARGO_HOME:-$HOME/.cargo}/bin/bpf-linker
    if [ "$("$bin" --version 2>/dev/null)" = "bpf-linker $linker_version" ]; then say "bpf-linker: present"; return; fi
    say "bpf-linker: building $linker_version (about a minute)"
    LLVM_PREFIX=/usr/lib/llvm-22 LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 \
        cargo install bpf-linker --version "$linker_version" --locked --force --no-default-features --features llvm-22
}

# Checks metrics and alert rules. Debian's package prometheus, 19 MB to fetch, would install 96 MB, a server that it
# starts, and fonts and scripts of a web page; the 48 MB of this one program are taken out of it.
install_promtool() {
    if "$cache/promtool" --version >/dev/null 2>&1; then say "promtool: present"
    else
        say "promtool: fetching"
        local work
        work=$(mktemp -d "$cache/.promtool.XXXXXX")
        own_apt "$work/apt" bookworm
        (cd "$work" && apt-get "${own_apt_options[@]}" -qq download prometheus)
        dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/promtool
        mv "$work/usr/bin/promtool" "$cache/promtool"
        rm -rf "$work"
    fi
    (cd "$root" && mkdir -p "$target/guest" && ln -sfn "$cache/promtool" "$target/guest/promtool")
}

install_kernels() {
    local recipe line
    recipe=$(sha256sum "$here/kernels.sh" | cut -c1-8)
    for line in 6.1 6.12 7.3; do
        if [[ $(readlink "$cache/kernels/$line") = *"-$recipe" && -e $cache/kernels/$line/vmlinux ]]; then
            say "kernel $line: present ($(cat "$cache/kernels/$line/release"))"
        else
            say "kernel $line: fetching"
            "$here/kernels.sh" "$line" "$cache/kernels" "$recipe"
        fi
    done
}

build_image() {
    local recipe image
    recipe=$(cat "$here"/image*.sh "$here"/scenarios/programs/*.java | sha256sum | cut -c1-8)
    image=$cache/images/bookworm-$recipe.ext4
    if [ -e "$image" ]; then
        say "root image: present"
    else
        say "root image: building (about two minutes)"
        mkdir -p "$cache/images"
        as_root "$here/image.sh" "$image"
    fi
    # Each clone has its own link: another one may be of a version with another recipe.
    (cd "$root" && mkdir -p "$target/guest" && ln -sfn "$image" "$target/guest/root-image.new" &&
        mv -T "$target/guest/root-image.new" "$target/guest/root-image")
}

# Static, because the initramfs has no libraries; a target folder of its own, because of the other flags.
build_guest() {
    say "guest programs: building"
    (cd "$root" && RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release --locked \
        --package underseal-vm-guest --target x86_64-unknown-linux-gnu \
        --target-dir "$target/guest")
}

main "$@"
