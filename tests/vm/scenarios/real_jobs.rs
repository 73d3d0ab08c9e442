//! What real programs do: one shell script each, run in the workload `shop`. A script prints what must be the same
//! in every run, and fails if the program does.

/// Something that programs do.
pub(crate) struct Job {
    /// The program that it is about.
    pub(crate) name: &'static str,
    /// The workloads whose links are recorded.
    pub(crate) links: &'static [&'static str],
    /// At least so many connections are made.
    pub(crate) connections: u64,
    /// What the client's shell does.
    pub(crate) script: &'static str,
}

const fn direct(name: &'static str, connections: u64, script: &'static str) -> Job {
    Job {
        name,
        links: &["shop"],
        connections,
        script,
    }
}

/// Clients of databases and caches.
pub(crate) const DATABASES: &[Job] = &[
    direct("psql", 2, PSQL),
    direct("pgbench", 12, PGBENCH),
    direct("pgbench -C", 40, PGBENCH_CONNECT),
    direct("mariadb", 2, MARIADB),
    direct("mariadb-slap", 6, MARIADB_SLAP),
    direct("redis", 10, REDIS),
    direct("memcached", 8, MEMCACHED),
];

/// HTTP, and a proxy that is a workload of its own.
pub(crate) const WEB: &[Job] = &[
    direct("nginx, curl", 20, NGINX_CURL),
    direct("nginx, wrk", 12, NGINX_WRK),
    // It keeps connections and uses them again, and so does haproxy.
    direct("node", 5, NODE),
    Job {
        name: "haproxy",
        links: &["shop", "gate"],
        connections: 5,
        script: HAPROXY,
    },
];

/// Languages with a network stack of their own.
pub(crate) const RUNTIMES: &[Job] = &[
    direct("java", 12, JAVA),
    direct("etcd (Go)", 8, ETCD),
    direct("python", 30, PYTHON),
    direct("grpc", 3, GRPC),
    direct("tokio", 24, TOKIO),
];

/// Rows in and out, COPY both ways, a result in one long row; psql asks for TLS first, which the server refuses.
const PSQL: &str = "\
for host in $CART4 $CART6; do
    psql -h $host -U shop -d shop -q -v marker=\"$MARKER\" -f /srv/real/shop.sql | sha256sum
    sha256sum </tmp/goods
done";

/// Three protocols; in the end all balances agree with the history. The same seed makes the same transactions.
const PGBENCH: &str = "\
export PGAPPNAME=$MARKER
ask() { psql -h $CART6 -U shop -d shop -qAt -c \"$1\"; }
ask 'truncate pgbench_history; update pgbench_accounts set abalance = 0 where abalance <> 0;
    update pgbench_tellers set tbalance = 0; update pgbench_branches set bbalance = 0'
for protocol in simple extended prepared; do
    pgbench -h $CART4 -U shop -n -c 4 -j 2 -t 8 -M $protocol --random-seed=7 shop 2>&1 |
        grep -E 'number of (failed )?transactions|abort|error'
done
ask 'select (select sum(abalance * aid) from pgbench_accounts), (select sum(abalance) from pgbench_accounts),
    (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches),
    (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)'";

/// A connection for each transaction.
const PGBENCH_CONNECT: &str = "\
export PGAPPNAME=$MARKER
pgbench -h $CART4 -U shop -n -S -C -c 4 -j 2 -t 10 --random-seed=7 shop 2>&1 |
    grep -E 'number of (failed )?transactions|abort|error'";

const MARIADB: &str = "\
for host in $CART4 $CART6; do
    mariadb -h $host -u shop --skip-ssl shop <<END | sha256sum
create or replace table goods (id int primary key, name text);
insert into goods select seq, concat(seq, ' $MARKER') from seq_1_to_2000;
select count(*), md5(group_concat(id order by id)) from goods;
select repeat('$MARKER', 5000);
select * from goods order by id;
END
done";

const MARIADB_SLAP: &str = "\
mariadb -h $CART4 -u shop --skip-ssl -e 'drop database if exists slap'
mariadb-slap -h $CART4 -u shop --skip-ssl --concurrency=6 --iterations=1 --number-of-queries=60 \
    --create-schema=slap --no-drop --delimiter=';' \
    --create='create or replace table t (id int auto_increment primary key, name varchar(100))' \
    --query=\"insert into t (name) values ('$MARKER'); select count(*) from t\" | grep -E 'Number of clients|Average number of queries'
mariadb -h $CART6 -u shop --skip-ssl -N slap -e 'select count(*), count(distinct id), count(distinct name) from t'";

const REDIS: &str = "\
redis-cli -h $CART4 flushall
redis-benchmark -h $CART6 -n 300 -c 10 -q incr n >/dev/null
redis-benchmark -h $CART4 -n 400 -c 10 -P 8 -q rpush list $MARKER >/dev/null
redis-cli -h $CART6 get n
redis-cli -h $CART4 llen list
redis-cli -h $CART4 -x set file </srv/files/300007
redis-cli -h $CART6 get file | sha256sum
redis-cli -h $CART4 lrange list 0 -1 | sha256sum";

/// memcaslap compares half of what it gets with what it has set.
const MEMCACHED: &str = "\
cd /srv/files
for file in 100 16384 65536 300007; do
    memccp --servers=$CART4 $file
    memccat --servers=$CART4 $file | sha256sum
done
memcaslap -s $CART4:11211 -T 2 -c 8 -x 400 -v 0.5 -X 1000 | grep -E '^(get_misses|verify_misses|verify_failed|cmd_[sg]et)'";

/// Files of many sizes: on one connection, in part, on one connection each, and several at a time.
const NGINX_CURL: &str = "\
files='{0,1,100,16384,16385,65536,300007}'
curl='curl -sS --fail --max-time 100'
for port in 8080 8081 8082; do
    for host in $CART4 [$CART6]; do
        $curl \"http://$host:$port/$files\" | sha256sum
    done
    $curl -r 5000-70000 http://$CART4:$port/300007 | sha256sum
    for file in 0 300007; do
        $curl --http1.0 http://$CART4:$port/$file | sha256sum
    done
    $curl -Z --parallel-max 4 \"http://$CART4:$port/$files\" -o '/tmp/got#1' 2>/dev/null
    cat /tmp/got* | sha256sum
    rm /tmp/got*
done";

const NGINX_WRK: &str = "\
export PAGE=/16385 EXPECTED=/srv/files/16385
/srv/real/wrk.sh 2 6 http://$CART4:8080
/srv/real/wrk.sh 2 6 http://[$CART6]:8081
CLOSE=1 /srv/real/wrk.sh 2 4 http://$CART4:8080";

const NODE: &str = "exec node /srv/real/node_client.js http://[$CART6]:3000 $MARKER /1 /100 /16384 /16385 /65536 /300007";

const JAVA: &str = "exec java -Xmx64m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp /srv/java Talk ask $CART4 9000 $MARKER";

/// API 3 is gRPC, API 2 and the gateway are net/http.
const ETCD: &str = "\
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=http://$CART4:2379
etcdctl del --prefix '' >/dev/null
etcdctl put big </srv/files/300007
etcdctl get --print-value-only big | sha256sum
for n in 1 2; do etcdctl put n/$n $MARKER & done
wait
etcdctl get --prefix n/
export ETCDCTL_API=2 ETCDCTL_ENDPOINTS=http://[$CART6]:2379
etcdctl set k \"$(head -c 20000 /srv/files/65536)\" | sha256sum
etcdctl get k | sha256sum
curl -sS --fail http://$CART4:2379/v2/keys/k >/tmp/answer
PAGE=/v2/keys/k EXPECTED=/tmp/answer /srv/real/wrk.sh 1 4 http://$CART4:2379";

const PYTHON: &str = "exec python3 /srv/real/python_client.py $CART4 8888 $MARKER";

const GRPC: &str = "exec python3 /srv/real/grpc_talk.py ask [$CART6]:50051 $MARKER";

const TOKIO: &str = "\
tokio-talk ask $CART4:9100 $MARKER
tokio-talk ask [$CART6]:9100 $MARKER";

/// TCP and HTTP mode in front of nginx; node behind it answers to POST; pgbench through it.
const HAPROXY: &str = "\
files='{0,1,100,16384,16385,65536,300007}'
for port in 8000 8001 8002; do
    for host in $GATE4 [$GATE6]; do
        curl -sS --fail --max-time 100 \"http://$host:$port/$files\" | sha256sum
    done
    PAGE=/16385 EXPECTED=/srv/files/16385 /srv/real/wrk.sh 1 4 http://$GATE4:$port
done
curl -sS --fail --max-time 100 --data-binary @/srv/files/300007 http://$GATE4:8003/echo | sha256sum
curl -sS --fail --max-time 100 -X POST -H 'Transfer-Encoding: chunked' -T /srv/files/65536 http://[$GATE6]:8003/echo | sha256sum
PGAPPNAME=$MARKER pgbench -h $GATE4 -U shop -n -S -c 4 -j 1 -t 10 --random-seed=7 shop 2>&1 |
    grep -E 'number of (failed )?transactions|abort|error'";
