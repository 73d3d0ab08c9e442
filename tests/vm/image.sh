#!/usr/bin/env bash
# image.sh IMAGE (as root): makes the guests' root image, an ext4 of Debian 12 with systemd and the programs
# that scenarios run, each as Debian has it. Nothing of Underseal is in it; the initramfs brings that. No service but
# systemd's own starts.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/apt.sh"

image=$1

include=(systemd systemd-sysv udev dbus kmod iproute2 iputils-ping procps wireguard-tools bpftool
    curl python3 redis-server redis-tools netcat-openbsd openssl iperf3 nginx-light tcpdump strace
    postgresql-15 mariadb-server-core mariadb-client memcached libmemcached-tools haproxy wrk
    nodejs etcd-server etcd-client openjdk-17-jre-headless ecj python3-grpcio python3-requests)

# What no guest needs: PostgreSQL's just-in-time compiler (a whole LLVM), and whatever is only read by people.
excluded=('/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' '/usr/share/i18n/*'
    '/usr/lib/x86_64-linux-gnu/gconv/*' '/usr/lib/x86_64-linux-gnu/libLLVM*' '/usr/lib/llvm-14/*'
    '/usr/lib/postgresql/15/lib/bitcode/*')

# Units that only cost time in an emulated machine, and servers that scenarios start themselves.
masked=(redis-server.service nginx.service iperf3.service postgresql.service memcached.service haproxy.service
    etcd.service
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
    mke2fs -q -F -t ext4 -O '^has_journal' -E lazy_itable_init=1 -m 0 -d "$work/tree" "$work/image" 1536M
    chmod 644 "$work/image"
    mv "$work/image" "$image"
}

install_debian() {
    mmdebstrap --quiet --mode=root --format=directory --variant=essential \
        --include="$(IFS=,; echo "${include[*]}")" \
        --aptopt='APT::Install-Recommends "0"' --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
        "${excluded[@]/#/--dpkgopt=path-exclude=}" --customize-hook="'$here/image_programs.sh' \"\$1\"" \
        bookworm "$1" "$(source_of bookworm)" "$(source_of bookworm-security)"
}

configure() {
    local tree=$1 unit
    rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/usr/lib/udev/hwdb.d \
        "$tree"/usr/lib/udev/hwdb.bin "$tree"/etc/udev/hwdb.bin
    # Tools in Perl that no guest runs; the package manager's own perl is another one.
    rm -rf "$tree"/usr/share/perl "$tree"/usr/share/perl5 "$tree"/usr/lib/x86_64-linux-gnu/perl
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
