# One NixOS machine with two workloads in network namespaces: unmodified programs talk, and a
# recording of the wire between them holds TLS records and not their words. Needs nixpkgs and a
# machine that may run virtual ones: `nix build ./nixos#checks.x86_64-linux.basic`.
{ module }:
let
  words = "words that only plaintext contains";
  workload = name: number: {
    inherit name;
    namespace = "shop";
    netns = "/run/netns/${name}";
    addresses = [ "10.1.0.${toString number}" ];
    identity = "/etc/identities/${name}";
  };
in
{
  name = "underseal-basic";

  nodes.machine =
    { pkgs, ... }:
    let
      identities = pkgs.runCommand "identities" { nativeBuildInputs = [ pkgs.openssl ]; } ''
        mkdir $out && cd $out
        key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }
        key ca.key
        openssl req -x509 -new -key ca.key -subj /CN=test -days 3650 -out ca.crt
        for name in cart web; do
          mkdir $name
          cp ca.crt $name/
          key $name/tls.key
          openssl req -new -key $name/tls.key -subj / -out request
          echo "basicConstraints=critical,CA:false" > extensions
          echo "subjectAltName=critical,URI:spiffe://example.org/ns/shop/sa/$name" >> extensions
          openssl x509 -req -in request -CA ca.crt -CAkey ca.key -days 3650 -extfile extensions \
            -out $name/tls.crt
        done
      '';
      namespace = name: number: ''
        ip netns add ${name}
        ip link add h-${name} type veth peer name eth0 netns ${name}
        ip link set h-${name} up
        ip -n ${name} link set lo up
        ip -n ${name} link set eth0 up
        ip -n ${name} address add 10.1.0.${toString number}/32 dev eth0
        ip -n ${name} route add 169.254.1.1 dev eth0
        ip -n ${name} route add default via 169.254.1.1
        echo 1 > /proc/sys/net/ipv4/conf/h-${name}/proxy_arp
      '';
    in
    {
      imports = [ module ];

      services.underseal = {
        enable = true;
        settings = {
          node = {
            networks = [ "10.1.0.0/24" ];
            trust_domain = "example.org";
          };
          workload = [
            (workload "cart" 10)
            (workload "web" 11)
          ];
        };
      };

      # Keys of a test may be in the store.
      environment.etc."identities/cart".source = "${identities}/cart";
      environment.etc."identities/web".source = "${identities}/web";

      systemd.services.namespaces = {
        wantedBy = [ "underseal.service" ];
        before = [ "underseal.service" ];
        unitConfig.DefaultDependencies = false;
        path = [ pkgs.iproute2 ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
        };
        script = namespace "cart" 10 + namespace "web" 11;
      };

      systemd.services.web = {
        wantedBy = [ "multi-user.target" ];
        requires = [ "underseal.service" ];
        after = [ "underseal.service" ];
        serviceConfig = {
          NetworkNamespacePath = "/run/netns/web";
          WorkingDirectory = pkgs.writeTextDir "page" words;
          ExecStart = "${pkgs.python3}/bin/python3 -m http.server 80";
        };
      };

      environment.systemPackages = [ pkgs.tcpdump ];
    };

  testScript = ''
    machine.wait_for_unit("underseal.service")
    machine.wait_for_unit("underseal-handshake.service")
    machine.wait_for_unit("web.service")
    machine.execute("tcpdump -i h-web -U -w /tmp/wire.pcap tcp >&2 &")
    machine.wait_for_file("/tmp/wire.pcap")

    page = machine.wait_until_succeeds("ip netns exec cart curl -sS --max-time 20 http://10.1.0.11/page")
    assert page == "${words}", page
    machine.fail("grep -a '${words}' /tmp/wire.pcap")
    machine.succeed("grep -qaP '\\x17\\x03\\x03' /tmp/wire.pcap")

    again = machine.succeed("underseal apply")
    assert "no changes" in again, again
    machine.succeed("systemctl stop underseal.service")
    machine.fail("test -e /sys/fs/bpf/underseal")
  '';
}
