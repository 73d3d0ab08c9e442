# NixOS module: writes the configuration, hangs the package's own units into the boot, and asks of
# the kernel what it must have. It holds no logic of its own: what the settings mean is documented
# in examples/underseal.toml, and `underseal apply` judges them.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.underseal;
  toml = pkgs.formats.toml { };

  # Known keys are typed, the others are passed on: apply refuses those it does not know.
  section =
    options:
    types.submodule {
      freeformType = toml.type;
      inherit options;
    };
  option = type: description: mkOption { inherit type description; };
  optional =
    type: default: description:
    mkOption { inherit type default description; };
  strings = types.listOf types.str;

  file = toml.generate "underseal.toml" (lib.filterAttrs (_: value: value != null) cfg.settings);
  hasWireguard = cfg.settings.wireguard != null || cfg.settings.peer != [ ];
  port = if cfg.settings.wireguard == null then 51871 else cfg.settings.wireguard.port;
  # Keys that are replaced have devices on the three ports after it.
  generations =
    lib.filter (it: it.generation or 0 != 0) cfg.settings.peer != [ ]
    || (
      cfg.settings.wireguard != null
      && (cfg.settings.wireguard.generation or 0 != 0 || cfg.settings.wireguard.next or null != null)
    );
  ports =
    if generations then
      [
        port
        (port + 1)
        (port + 2)
        (port + 3)
      ]
    else
      [ port ];
  devices = map (
    uplink: "sys-subsystem-net-devices-${utils.escapeSystemdPath uplink}.device"
  ) cfg.settings.node.uplinks;
  lsmLists = lib.filter (lib.hasPrefix "lsm=") config.boot.kernelParams;
in
{
  options.services.underseal = {
    enable = lib.mkEnableOption "Underseal, which encrypts every path between workloads in the kernel";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package that has the programs and the units.";
    };

    openFirewall =
      optional types.bool true
        "Whether WireGuard's UDP port is opened, if there is a WireGuard device; with generations of keys, the three after it too.";

    pki.enable = lib.mkEnableOption ''
      the timer that renews certificates of the built-in CA, on a node where `underseal pki init`
      has made one. Folders outside of /var/lib/underseal need ReadWritePaths of
      underseal-pki.service'';

    metrics = {
      enable = lib.mkEnableOption ''
        the timer that writes metrics for the textfile collector of the Prometheus node exporter,
        which is to be told the folder: --collector.textfile.directory'';
      directory = optional types.str "/var/lib/prometheus/node-exporter" ''
        The folder that they are written to, as underseal.prom; made if it is not there.'';
    };

    spire.enable = lib.mkEnableOption ''
      underseal-spire, which keeps the identities that a SPIRE agent has for workloads with
      `spire = true` in their folders. Folders outside of /var/lib/underseal need ReadWritePaths of
      underseal-spire.service'';

    settings = mkOption {
      description = "The configuration, as in examples/underseal.toml.";
      type = section {
        node = option (section {
          name = optional types.str config.networking.hostName "Name of this node.";
          networks = option strings "Networks of this node's workloads.";
          uplinks =
            optional strings [ ]
              "Interfaces that lead to other nodes; the strict check stands there.";
          trust_domain = option types.str "Trust domain of the workloads' SPIFFE IDs.";
          cgroup = optional types.str "/sys/fs/cgroup" "The cgroup2 folder whose processes are covered.";
        }) "This node.";

        wireguard = optional (types.nullOr (section {
          interface = optional types.str "underseal0" "Name of the device.";
          port = optional types.port 51871 "UDP port.";
          private_key_file = optional types.str "/var/lib/underseal/wireguard.key" ''
            Where the private key is kept; made by the first apply. Never a path of the Nix store.
          '';
          addresses = optional strings [ ] "Addresses of the device.";
        })) null "The WireGuard device. With peers it is there even if this is null.";

        peer = optional (types.listOf (section {
          name = option types.str "Name of the node.";
          public_key = option types.str "Its public key, as `underseal key` prints it.";
          endpoint = option types.str "Where it is reached: ADDRESS:PORT.";
          networks = option strings "Networks of its workloads.";
        })) [ ] "The other nodes. `address` is where the helper is reached inside of the tunnel, `workload` what policies are to know of its workloads.";

        seal = optional (section {
          mode = optional (types.enum [
            "same-node"
            "always"
            "cross-node"
            "never"
          ]) "same-node" "Which connections are sealed by mutual TLS.";
          cipher = optional (types.enum [
            "aes-128-gcm"
            "aes-256-gcm"
            "chacha20-poly1305"
            "auto"
          ]) "aes-128-gcm" "Cipher of sealed connections.";
          existing = optional (types.enum [
            "reset"
            "keep"
          ]) "reset" "What happens to plaintext connections that are open at the take-over.";
          close_revoked =
            optional types.bool true
              "Whether open connections end when a certificate they were made with is revoked.";
          recheck =
            optional types.str "24h"
              "How often the certificates of open connections are verified again.";
          port = optional types.port 51872 "TCP port inside of the tunnel for the nodes' helpers.";
        }) { } "How connections between workloads are sealed.";

        policy = optional (section {
          outside = optional (types.enum [
            "allow"
            "deny"
          ]) "allow" "Traffic with addresses that are no workload.";
          non_tcp = optional (types.enum [
            "allow"
            "deny"
          ]) "deny" "What mutual TLS cannot carry, between workloads of this node; ICMP always passes.";
        }) { } "What may pass unsealed.";

        pki = optional (section {
          directory = optional types.str "/var/lib/underseal/pki" "Where the built-in CA keeps its files.";
          lifetime = optional types.str "24h" "How long its certificates are valid.";
          renew_before = optional types.str "1h" "How long before their end they are renewed.";
          key = optional (types.enum [
            "p256"
            "ed25519"
          ]) "p256" "Of what kind new keys are.";
        }) { } "The built-in CA.";

        spire = optional (types.nullOr (section {
          socket = option types.str "The Workload API of the node's SPIRE agent, a unix socket.";
        })) null "The SPIRE agent, for workloads and trust bundles with `spire = true`.";

        workload = optional (types.listOf (section {
          name = option types.str "Its name.";
          namespace = optional types.str "default" "The namespace that its SPIFFE ID names.";
          netns = option types.str "Path of its network namespace.";
          interface = optional types.str "eth0" "Its own end of a veth pair.";
          addresses = option strings "Its addresses, out of the node's networks.";
          spire = optional types.bool false "Whether its certificate comes from the SPIRE agent.";
        })) [ ] "The workloads of this node.";

        network_policy = optional (types.listOf (section {
          name = option types.str "Its name.";
        })) [ ] "Who may talk to whom; docs/policy.md has all keys.";

        trust_bundle = optional (types.listOf (section {
          trust_domain = option types.str "Another trust domain.";
          file = option types.str "Path of its CAs' certificates, PEM.";
          spire = optional types.bool false "Whether the SPIRE agent says which ones they are.";
        })) [ ] "Whom workloads of other trust domains are verified against.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = lib.versionAtLeast config.boot.kernelPackages.kernel.version "6.1";
        message = "services.underseal needs Linux 6.1 or later.";
      }
      {
        assertion = lib.all (
          list: lib.elem "bpf" (lib.splitString "," (lib.removePrefix "lsm=" list))
        ) lsmLists;
        message = "services.underseal needs `bpf` in the kernel parameter lsm= (security.lsm).";
      }
    ];

    # All of them are loaded at first use; listed for machines that lock loading after boot.
    boot.kernelModules = [
      "tls"
      "inet_diag"
      "tcp_diag"
    ]
    ++ lib.optional hasWireguard "wireguard";

    # Mistakes that types do not show end the build, not the boot.
    system.checks = [
      (pkgs.runCommandLocal "check-underseal" { } ''
        ${lib.getExe cfg.package} -c ${file} check > $out
      '')
    ];

    environment.systemPackages = [ cfg.package ];
    environment.etc."underseal/underseal.toml".source = file;
    networking.firewall.allowedUDPPorts = lib.mkIf (cfg.openFirewall && hasWireguard) ports;

    # The units are the package's. Here is only what NixOS keeps outside of units, and the uplinks.
    systemd.packages = [ cfg.package ];
    systemd.services.underseal = {
      wantedBy = [ "multi-user.target" ];
      wants = devices;
      after = devices;
      # A new configuration or version is applied, not torn down and built anew.
      reloadIfChanged = true;
      reloadTriggers = [ file ];
    };
    systemd.services.underseal-handshake.wantedBy = [ "multi-user.target" ];
    systemd.services.underseal-spire.wantedBy = lib.optional cfg.spire.enable "multi-user.target";
    systemd.services.underseal-metrics = {
      environment.UNDERSEAL_METRICS = "${cfg.metrics.directory}/underseal.prom";
      serviceConfig.ReadWritePaths = [ cfg.metrics.directory ];
    };
    systemd.tmpfiles.rules = lib.optional cfg.metrics.enable "d ${cfg.metrics.directory} 0755 root root -";
    systemd.timers = {
      underseal-pki.wantedBy = lib.optional cfg.pki.enable "timers.target";
      underseal-metrics.wantedBy = lib.optional cfg.metrics.enable "timers.target";
    };
  };
}
