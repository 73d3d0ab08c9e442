# The module, evaluated. loader/tests/shipped.rs reads what this returns (as JSON) and gives the
# rendered configuration to the loader's own parser.
let
  lib = import ./evaluator.nix;
  inherit (lib) mkOption types;

  pkgs = {
    callPackage = _: _: {
      _type = "package";
      exe = "underseal";
    };
    runCommandLocal =
      _: _: script:
      script;
    formats.toml = _: {
      type = types.anything;
      # JSON instead of TOML: the loader reads both.
      generate = name: value: "${name}: ${builtins.toJSON value}";
    };
  };
  utils.escapeSystemdPath = builtins.replaceStrings [ "-" ] [ "\\x2d" ];

  # What the module sets of NixOS, and reads of it.
  nixos.options =
    let
      option =
        default:
        mkOption {
          type = types.anything;
          inherit default;
        };
      list = mkOption {
        type = types.listOf types.anything;
        default = [ ];
      };
    in
    {
      environment.etc = option { };
      environment.systemPackages = list;
      systemd.packages = list;
      systemd.services = option { };
      systemd.timers = option { };
      systemd.tmpfiles.rules = list;
      networking.hostName = option "node-a";
      networking.firewall.allowedUDPPorts = list;
      boot.kernelPackages = option { kernel.version = "6.12.1"; };
      boot.kernelParams = list;
      boot.kernelModules = list;
      assertions = list;
      system.checks = list;
    };

  evaluate =
    system: underseal:
    lib.evaluate
      [ ]
      [
        (import ../module.nix)
        nixos
        {
          config = system // {
            services.underseal = underseal;
          };
        }
      ]
      { inherit lib pkgs utils; };

  # examples/underseal.toml in Nix, but for what is the default there and here.
  example = {
    enable = true;
    settings = {
      node = {
        networks = [
          "10.1.0.0/24"
          "fd00:1::/64"
        ];
        uplinks = [ "eth0" ];
        trust_domain = "example.org";
      };
      wireguard = {
        addresses = [ "10.1.0.1/32" ];
        mtu = 1405;
      };
      peer = [
        {
          name = "node-b";
          public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
          endpoint = "192.0.2.2:51871";
          networks = [
            "10.2.0.0/24"
            "fd00:2::/64"
          ];
          address = "10.2.0.1";
          persistent_keepalive = 25;
        }
      ];
      spire.socket = "/run/spire/agent.sock";
      workload = [
        {
          name = "cart";
          namespace = "shop";
          netns = "/run/netns/cart";
          addresses = [
            "10.1.0.10"
            "fd00:1::10"
          ];
          dns_names = [ "cart.example.org" ];
        }
        {
          name = "web";
          namespace = "shop";
          netns = "/run/netns/web";
          addresses = [
            "10.1.0.11"
            "fd00:1::11"
          ];
        }
      ];
      trust_bundle = [
        {
          trust_domain = "partner.test";
          file = "/var/lib/underseal/bundles/partner.pem";
        }
      ];
    };
  };
  least = {
    enable = true;
    settings.node = {
      networks = [ "10.1.0.0/24" ];
      trust_domain = "example.org";
    };
  };
  wrong = settings: evaluate { } (least // { settings = least.settings // settings; });

  file = system: system.environment.etc."underseal/underseal.toml".source;
  refuses = system: !(builtins.tryEval (builtins.deepSeq (file system) null)).success;
  failing = system: map (a: a.message) (builtins.filter (a: !a.assertion) system.assertions);
  booted = version: kernelParams: {
    boot = {
      kernelPackages.kernel.version = version;
      inherit kernelParams;
    };
  };
in
{
  example = file (evaluate { } example);
  least = file (evaluate { } least);
  off = (evaluate { } (least // { enable = false; })).environment;
  checks = (evaluate { } example).system.checks;
  services = (evaluate { } example).systemd.services;
  spire = (evaluate { } (least // { spire.enable = true; })).systemd.services;
  timers = {
    on = (evaluate { } (least // { pki.enable = true; })).systemd.timers;
    off = (evaluate { } least).systemd.timers;
  };
  metrics =
    let
      of = system: {
        service = system.systemd.services.underseal-metrics;
        timer = system.systemd.timers.underseal-metrics;
        folders = system.systemd.tmpfiles.rules;
      };
    in
    {
      on = of (evaluate { } (least // { metrics.enable = true; }));
      elsewhere = of (
        evaluate { } (
          least
          // {
            metrics = {
              enable = true;
              directory = "/srv/textfiles";
            };
          }
        )
      );
      off = of (evaluate { } least);
    };
  modules = (evaluate { } example).boot.kernelModules;
  ports = {
    example = (evaluate { } example).networking.firewall.allowedUDPPorts;
    least = (evaluate { } least).networking.firewall.allowedUDPPorts;
    generations =
      let
        settings = example.settings // {
          wireguard = {
            next.private_key_file = "/key";
          };
        };
      in
      (evaluate { } (example // { inherit settings; })).networking.firewall.allowedUDPPorts;
  };
  refused = builtins.mapAttrs (_: settings: refuses (wrong settings)) {
    mode = {
      seal.mode = "sometimes";
    };
    port = {
      wireguard.port = 70000;
    };
    peer = {
      peer = [ { name = "node-b"; } ];
    };
    null = {
      extra = null;
    };
    # The control: nothing is wrong here.
    nothing = { };
  };
  failing = {
    neither = failing (evaluate { } least);
    lsm = failing (
      evaluate (booted "6.12.1" [
        "quiet"
        "lsm=landlock,yama"
      ]) least
    );
    lsm_with_bpf = failing (evaluate (booted "6.12.1" [ "lsm=landlock,bpf" ]) least);
    kernel = failing (evaluate (booted "5.15.9" [ ]) least);
  };
}
