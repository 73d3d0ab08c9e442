//! The servers of real programs, all in the workload `cart`, and haproxy in `gate`. No service of Debian's is used:
//! each is started with few and small buffers, because the machine is emulated.

use std::time::Duration;

use anyhow::{Context as _, Result};
use underseal_vm::site::Site;

/// What servers and clients read: under /srv/real in the guest.
const FILES: &[(&str, &[u8])] = &[
    (
        "asyncio_server.py",
        include_bytes!("programs/asyncio_server.py"),
    ),
    ("check.lua", include_bytes!("programs/check.lua")),
    ("grpc_talk.py", include_bytes!("programs/grpc_talk.py")),
    ("haproxy.cfg", include_bytes!("programs/haproxy.cfg")),
    ("nginx.conf", include_bytes!("programs/nginx.conf")),
    ("node_client.js", include_bytes!("programs/node_client.js")),
    ("node_server.js", include_bytes!("programs/node_server.js")),
    (
        "python_client.py",
        include_bytes!("programs/python_client.py"),
    ),
    ("shop.sql", include_bytes!("programs/shop.sql")),
    ("wrk.sh", include_bytes!("programs/wrk.sh")),
];

/// Sizes of the files in /srv/files, which are named after them: around those of TLS records and of pipes.
const SIZES: [u32; 7] = [0, 1, 100, 16384, 16385, 65536, 300_007];

/// A program that listens.
pub(crate) struct Server {
    workload: &'static str,
    ports: &'static [u16],
    script: &'static str,
}

const NGINX: Server = in_cart(
    &[8080, 8081, 8082],
    "exec nginx -c /srv/real/nginx.conf -g 'daemon off;'",
);

const fn in_cart(ports: &'static [u16], script: &'static str) -> Server {
    Server {
        workload: "cart",
        ports,
        script,
    }
}

const POSTGRESQL: Server = in_cart(
    &[5432],
    "cd /; exec setpriv --reuid=postgres --regid=postgres --init-groups \
    /usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/main \
    -c config_file=/etc/postgresql/15/main/postgresql.conf -c external_pid_file= -c unix_socket_directories=/tmp \
    -c listen_addresses='*' -c ssl=off -c fsync=off -c jit=off -c autovacuum=off -c shared_buffers=16MB",
);

/// What [`crate::real_jobs::DATABASES`] asks.
pub(crate) const DATABASES: &[Server] = &[
    POSTGRESQL,
    in_cart(
        &[3306],
        "exec mariadbd --no-defaults --user=root --datadir=/var/lib/mysql --socket=/tmp/mariadb \
        --bind-address='*' --skip-name-resolve --innodb-buffer-pool-size=8M --innodb-log-file-size=4M \
        --innodb-flush-log-at-trx-commit=0 --key-buffer-size=1M --aria-pagecache-buffer-size=1M",
    ),
    in_cart(
        &[6379],
        "exec redis-server --bind '*' -::'*' --protected-mode no --save '' --dir /tmp",
    ),
    in_cart(&[11211], "exec memcached -u root -m 16 -t 2 -l 0.0.0.0,::"),
];

/// What [`crate::real_jobs::WEB`] asks.
pub(crate) const WEB: &[Server] = &[
    in_cart(
        &[3000],
        "exec node /srv/real/node_server.js /srv/files 3000",
    ),
    POSTGRESQL,
    NGINX,
    Server {
        workload: "gate",
        ports: &[8000, 8001, 8002, 8003, 5432],
        script: "exec haproxy -db -f /srv/real/haproxy.cfg",
    },
];

/// What [`crate::real_restarts`] asks.
pub(crate) const RESTARTS: &[Server] = &[POSTGRESQL, NGINX];

/// What [`crate::real_jobs::RUNTIMES`] asks.
pub(crate) const RUNTIMES: &[Server] = &[
    in_cart(
        &[9000, 9001],
        "exec java -Xmx64m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp /srv/java \
        Talk serve /srv/files/65536 9000",
    ),
    in_cart(&[50051], "exec python3 /srv/real/grpc_talk.py serve 50051"),
    in_cart(
        &[2379],
        "exec etcd --data-dir /tmp/etcd --enable-v2 --unsafe-no-fsync --log-level error \
        --heartbeat-interval 1000 --election-timeout 5000 --listen-client-urls http://[::]:2379 \
        --advertise-client-urls http://[$CART6]:2379",
    ),
    in_cart(
        &[8888],
        "exec python3 /srv/real/asyncio_server.py 8888 /srv/files/65536",
    ),
    in_cart(&[9100], "exec tokio-talk serve [::]:9100"),
];

/// Starts `servers` at once and waits until each listens; they run until the machine ends.
pub(crate) fn start(site: &Site, servers: &[Server]) -> Result<()> {
    prepare(site)?;
    let cart = site.workload("cart");
    for server in servers {
        let place = site
            .inside(server.workload)
            .env("CART4", &cart.v4.to_string())
            .env("CART6", &cart.v6.to_string());
        place.spawn(&format!(
            "{} >/tmp/server.{} 2>&1",
            server.script, server.ports[0]
        ))?;
    }
    for server in servers {
        for port in server.ports {
            // A runtime may take long to start on a busy machine.
            let listens = site.vm.inside(server.workload).wait_until(
                &format!("ss -Hltn 'sport = :{port}' | grep -q ."),
                Duration::from_secs(120),
                &format!("a listener on port {port}"),
            );
            listens.with_context(|| said(site, server))?;
        }
    }
    Ok(())
}

/// What a server has to say about itself.
fn said(site: &Site, server: &Server) -> String {
    let log = site
        .vm
        .sh(&format!("tail -n 20 /tmp/server.{}", server.ports[0]));
    log.map_or_else(|error| format!("{error:#}"), |output| output.text())
}

fn prepare(site: &Site) -> Result<()> {
    for (name, content) in FILES {
        site.vm.put(&format!("/srv/real/{name}"), content, 0o755)?;
    }
    let sizes = SIZES.map(|size| size.to_string()).join(" ");
    let marker = underseal_vm::main_job::MARKER;
    site.vm
        .sh(&format!(
            "mkdir -p /srv/files; yes {marker} | awk '{{ print NR, $0 }}' | head -c 300007 >/srv/files/300007; \
            for size in {sizes}; do head -c $size /srv/files/300007 >/srv/files/$size.new; \
            mv /srv/files/$size.new /srv/files/$size; done"
        ))
        .map(drop)
}
