#!/usr/bin/env bash
# image.sh IMAGE (as root): makes the guests' root image, an ext4 of Debian 12 with systemd and the programs
# that scenarios run. Nothing of ours is in it; the initramfs brings that. No service but systemd's own starts.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/apt.sh"

image=$1

include=(systemd systemd-sysv udev dbus kmod iproute2 iputils-ping procps wireguard-tools bpftool
    curl python3 redis-server redis-tools netcat-openbsd openssl iperf3 nginx-light tcpdump strace)

# Units that only cost time in an emulated machine, and servers that scenarios start themselves.
masked=(redis-server.service nginx.service iperf3.service
    systemd-hwdb-update.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
    systemd-random-seed.service systemd-pstore.service systemd-boot-update.service ldconfig.service
    systemd-journal-catalog-update.service systemd-machine-id-commit.service systemd-update-done.service
    systemd-firstboot.service systemd-binfmt.service systemd-logind.service systemd-remount-fs.service
    systemd-user-sessions.service systemd-ask-password-console.path systemd-ask-password-wall.path
    e2scrub_reap.service e2scrub_all.timer fstrim.timer apt-daily.timer apt-daily-upgrade.timer
    dpkg-db-backup.timer logrotate.timer getty@tty1.service serial-getty@ttyS0.service getty-static.service
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount
    sys-kernel-config.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount
    modprobe@.service modprobe@configfs.service modprobe@fuse.service modprobe@dm_mod.service
    modprobe@drm.service modprobe@loop.service modprobe@efi_pstore.service kmod-static-nodes.service user.slice)

main() {
    mkdir -p "$(dirname "$image")"
    work=$(mktemp -d "$(dirname "$image")/.new.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    install_debian "$work/tree"
    configure "$work/tree"
    mke2fs -q -F -t ext4 -O '^has_journal' -E lazy_itable_init=1 -m 0 -d "$work/tree" "$work/image" 768M
    chmod 644 "$work/image"
    mv "$work/image" "$image"
}

install_debian() {
    mmdebstrap --quiet --mode=root --format=directory --variant=essential \
        --include="$(IFS=,; echo "${include[*]}")" \
        --aptopt='APT::Install-Recommends "0"' --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/i18n/*' --dpkgopt='path-exclude=/usr/lib/x86_64-linux-gnu/gconv/*' \
        bookworm "$1" "$(source_of bookworm)" "$(source_of bookworm-security)"
}

configure() {
    local tree=$1 unit
    rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/usr/lib/udev/hwdb.d \
        "$tree"/usr/lib/udev/hwdb.bin "$tree"/etc/udev/hwdb.bin
    for unit in "${masked[@]}"; do ln -sf /dev/null "$tree/etc/systemd/system/$unit"; done
    ln -sf /lib/systemd/system/multi-user.target "$tree/etc/systemd/system/default.target"
    echo 0123456789abcdef0123456789abcdef > "$tree/etc/machine-id"
    echo guest > "$tree/etc/hostname"
    echo '127.0.0.1 localhost guest' > "$tree/etc/hosts"
    : > "$tree/etc/fstab"
    : > "$tree/etc/resolv.conf"
    touch "$tree/etc/.updated" "$tree/var/.updated"
    mkdir -p "$tree/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n' > "$tree/etc/systemd/journald.conf.d/guest.conf"
}

main
