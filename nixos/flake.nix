{
  description = "Underseal: encrypts every path between workloads exactly once, in the kernel";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
    in
    {
      nixosModules.default =
        { lib, ... }:
        {
          imports = [ ./module.nix ];
          services.underseal.package = lib.mkDefault self.packages.${system}.default;
        };
      packages.${system}.default = pkgs.callPackage ./package.nix { };
      checks.${system}.basic = pkgs.testers.runNixOSTest (
        import ./tests/basic.nix { module = self.nixosModules.default; }
      );
      formatter.${system} = pkgs.nixfmt;
    };
}
