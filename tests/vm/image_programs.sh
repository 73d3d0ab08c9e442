#!/usr/bin/env bash
# image_programs.sh TREE (as root, called by image.sh while TREE has /proc and /dev): makes on this machine what would
# take an emulated one long: a database for PostgreSQL with pgbench's tables in it, one for MariaDB, and the classes
# of the Java program in scenarios/programs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$1
postgres=/usr/lib/postgresql/15/bin
cluster=/var/lib/postgresql/15/main

main() {
    prepare_postgresql
    prepare_mariadb
    compile_java
    drop_clients
}

inside() { chroot "$tree" "$@"; }

as_postgres() { inside setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

# Debian's package has made the cluster. Everybody may connect to it from anywhere, as user `shop`.
prepare_postgresql() {
    local config=/etc/postgresql/15/main
    echo 'host all all all trust' >> "$tree$config/pg_hba.conf"
    # Whatever fails in between, no server stays behind.
    trap stop_postgresql EXIT
    as_postgres $postgres/pg_ctl -D $cluster -w -s -l /tmp/postgres.log start -o "-c config_file=$config/postgresql.conf \
        -c external_pid_file= -c fsync=off -c dynamic_shared_memory_type=mmap -c listen_addresses= \
        -c unix_socket_directories=/tmp"
    as_postgres $postgres/createuser -h /tmp --superuser shop
    as_postgres $postgres/createdb -h /tmp --owner shop shop
    as_postgres $postgres/pgbench -h /tmp --initialize --quiet shop >/dev/null 2>&1
    stop_postgresql
    trap - EXIT
    rm "$tree/tmp/postgres.log"
}

stop_postgresql() { as_postgres $postgres/pg_ctl -D $cluster -w -s -m fast stop; }

prepare_mariadb() {
    local options=(--no-defaults --user=root --datadir=/var/lib/mysql --innodb-log-file-size=4M)
    inside mariadb-install-db "${options[@]}" --skip-test-db --skip-name-resolve \
        --auth-root-authentication-method=normal >/dev/null
    printf '%s;\n' 'CREATE DATABASE shop' 'FLUSH PRIVILEGES' "CREATE USER shop@'%'" "GRANT ALL ON *.* TO shop@'%'" |
        inside mariadbd "${options[@]}" --bootstrap --silent-startup
}

# The compiler serves here only; what runs Java is Debian's.
compile_java() {
    install -D -t "$tree/srv/java" "$here"/scenarios/programs/*.java
    inside sh -c 'cd /srv/java && ecj -17 -proc:none -d . ./*.java'
    rm -f "$tree"/srv/java/*.java "$tree"/usr/share/java/ecj* "$tree"/usr/share/java/eclipse*
}

# MariaDB has many clients, 5 MB each, of which two are run.
drop_clients() {
    local program
    for program in "$tree"/usr/bin/mariadb-* "$tree"/usr/bin/{mysql*,resolve*,perror,replace,my_print_defaults}; do
        case $program in */mariadb-slap) ;; *) rm -f "$program" ;; esac
    done
    rm -f "$tree"/usr/lib/postgresql/15/bin/{pg_dump*,pg_restore,pg_basebackup,pg_upgrade,pg_waldump}
}

main
