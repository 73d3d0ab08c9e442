# The programs, the units and the documentation. The BPF object is built first, by a derivation of
# its own: it has its own lock file, and another target, for which nixpkgs' rustc has a core library.
{
  lib,
  rustPlatform,
  bpf-linker,
  llvm,
}:
let
  version = (lib.importTOML ../Cargo.toml).workspace.package.version;
  source =
    paths:
    lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.unions paths;
    };

  bpf = rustPlatform.buildRustPackage {
    pname = "underseal-bpf";
    inherit version;
    # bpf/abi is a member of the outer workspace.
    src = source [
      ../Cargo.toml
      ../bpf
    ];
    sourceRoot = "source/bpf";
    cargoLock.lockFile = ../bpf/Cargo.lock;
    nativeBuildInputs = [ bpf-linker ];
    # Target, flags and the one unstable feature are in bpf/.cargo/config.toml; nixpkgs' own cargo
    # hooks would override the target.
    buildPhase = ''
      runHook preBuild
      cargo build --release --offline --locked
      runHook postBuild
    '';
    installPhase = ''
      runHook preInstall
      install -Dm444 target/bpfel-unknown-none/release/underseal $out/lib/underseal.bpf.o
      runHook postInstall
    '';
    doCheck = false;
    # BTF is in sections that strip would take away.
    dontStrip = true;
    dontPatchELF = true;
    meta.license = lib.licenses.gpl2Only;
  };
in
rustPlatform.buildRustPackage {
  pname = "underseal";
  inherit version;
  src = source [
    ../Cargo.toml
    ../Cargo.lock
    ../clippy.toml
    ../README.md
    ../LICENSE
    ../LICENSE-APACHE
    ../LICENSE-LGPL
    ../LICENSE-MIT
    ../bpf
    ../docs
    ../examples
    ../ktls
    ../loader
    ../systemd
    ../tests/vm
  ];
  cargoLock.lockFile = ../Cargo.lock;
  # llvm-strip, for the object's debug information.
  nativeBuildInputs = [ llvm ];

  # loader/build.rs takes this object instead of building one.
  env.UNDERSEAL_BPF_OBJECT = "${bpf}/lib/underseal.bpf.o";
  cargoBuildFlags = [
    "--package=underseal"
    "--package=underseal-ktls"
    "--package=underseal-spire"
  ];
  # The library and the pure core; what needs a kernel is tested in virtual machines.
  cargoTestFlags = [
    "--package=underseal"
    "--package=underseal-ktls"
    "--lib"
  ];

  postInstall = ''
    install -Dm444 -t $out/lib/systemd/system systemd/*.service systemd/*.timer
    install -Dm444 -t $out/share/doc/underseal README.md LICENSE* docs/metrics.md examples/underseal.toml examples/alerts.yaml examples/alerts_test.yaml
    install -Dm444 bpf/LICENSE $out/share/doc/underseal/LICENSE-GPL
    substituteInPlace $out/lib/systemd/system/*.service \
      --replace-fail /usr/bin/ $out/bin/ \
      --replace-fail /usr/share/doc/ $out/share/doc/
    substituteInPlace $out/lib/systemd/system/*.timer \
      --replace-fail /usr/share/doc/ $out/share/doc/
  '';

  passthru = { inherit bpf; };
  meta = {
    description = "Encrypts every path between workloads exactly once, in the kernel";
    # Ours; the BPF programs inside; wireguard-control, which is linked in.
    license = [
      lib.licenses.asl20
      lib.licenses.mit
      lib.licenses.gpl2Only
      lib.licenses.lgpl21Plus
    ];
    mainProgram = "underseal";
    platforms = [ "x86_64-linux" ];
  };
}
