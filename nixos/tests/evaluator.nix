# As much of nixpkgs' `lib` as ../module.nix uses, with builtins only, so that the module can be
# evaluated on a machine that has nix and nothing else. What it is not asked for, it does not have.
let
  inherit (builtins)
    all
    attrNames
    concatLists
    concatMap
    elem
    filter
    foldl'
    head
    isAttrs
    isFunction
    isList
    isString
    listToAttrs
    mapAttrs
    removeAttrs
    stringLength
    substring
    tail
    zipAttrsWith
    ;

  tagged = tag: fields: fields // { _type = tag; };
  has = tag: value: isAttrs value && (value._type or null) == tag;
  place = builtins.concatStringsSep ".";

  # A definition, with mkIf and mkMerge taken off, as a list of plain values with priorities.
  resolve =
    priority: value:
    if has "if" value then
      if value.condition then resolve priority value.content else [ ]
    else if has "merge" value then
      concatMap (resolve priority) value.contents
    else if has "override" value then
      resolve value.priority value.content
    else
      [ { inherit priority value; } ];

  # The same for a set, but lazily: what was around the set is then around each of its values, so
  # that the names can be known before the conditions are.
  spread =
    definition:
    if has "if" definition then
      map (mapAttrs (_: tagIf definition.condition)) (spread definition.content)
    else if has "merge" definition then
      concatMap spread definition.contents
    else if has "override" definition then
      map (mapAttrs (_: mkOverride definition.priority)) (spread definition.content)
    else
      [ definition ];

  strongest =
    definitions:
    let
      best = foldl' (least: d: if d.priority < least then d.priority else least) 10000 definitions;
    in
    map (d: d.value) (filter (d: d.priority == best) definitions);

  # The value at `path` out of all its definitions.
  value =
    path: type: definitions:
    let
      values = strongest (concatMap (resolve 100) definitions);
      wrong = filter (v: !type.check v) values;
    in
    if values == [ ] then
      throw "${place path} is not defined"
    else if wrong != [ ] then
      throw "${place path} is not ${type.name}"
    else
      type.merge path values;

  simple = name: check: {
    inherit name check;
    merge =
      path: values:
      if all (v: v == head values) values then head values else throw "${place path} is defined twice";
  };

  types = rec {
    bool = simple "a boolean" builtins.isBool;
    str = simple "a string" isString;
    port = simple "a port" (v: builtins.isInt v && v >= 0 && v <= 65535);
    package = simple "a package" (v: has "package" v);
    enum = words: simple "one of ${toString words}" (v: elem v words);
    nullOr = type: {
      name = "null or ${type.name}";
      check = v: v == null || type.check v;
      merge = path: values: if elem null values then null else type.merge path values;
    };
    listOf = type: {
      name = "a list";
      check = isList;
      merge = path: values: map (v: value (path ++ [ "*" ]) type [ v ]) (concatLists values);
    };
    # Also what pkgs.formats.toml has: anything that TOML can say, which null is not.
    anything = {
      name = "a TOML value";
      check = v: v != null && !isFunction v;
      merge =
        path: values:
        if all isAttrs values then
          zipAttrsWith (name: value (path ++ [ name ]) anything) values
        else
          (simple "" (_: true)).merge path values;
    };
    submodule = module: {
      name = "a set";
      check = isAttrs;
      merge = path: values: evaluate path ([ module ] ++ map (config: { inherit config; }) values) { };
    };
  };

  # The configuration that `modules` make: sets with options, config and freeformType, or functions
  # from `arguments` to such sets.
  evaluate =
    path: modules: arguments:
    let
      loaded = map (m: if isFunction m then m (arguments // { inherit config; }) else m) modules;
      declared = foldl' merge { } (map (m: m.options or { }) loaded);
      freeform = filter (m: m ? freeformType) loaded;
      config = at path declared (map (m: m.config or { }) loaded);

      merge =
        left: right:
        left
        // mapAttrs (
          name: option: if left ? ${name} && !has "option" option then merge left.${name} option else option
        ) right;

      at =
        path: options: definitions:
        let
          given = zipAttrsWith (_: values: values) (concatMap spread definitions);
          unknown = removeAttrs given (attrNames options);
          known = mapAttrs (
            name: option:
            let
              here = path ++ [ name ];
              definitions = given.${name} or [ ];
              default = if option ? default then [ (mkOverride 1500 option.default) ] else [ ];
            in
            if has "option" option then
              value here option.type (definitions ++ default)
            else
              at here option definitions
          ) options;
        in
        if unknown == { } then
          known
        else if freeform == [ ] then
          throw "${place (path ++ [ (head (attrNames unknown)) ])} does not exist"
        else
          known // mapAttrs (name: value (path ++ [ name ]) (head freeform).freeformType) unknown;
    in
    config;

  tagIf = condition: content: tagged "if" { inherit condition content; };
  mkOverride = priority: content: tagged "override" { inherit priority content; };
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
in
{
  inherit evaluate types hasPrefix;
  inherit (builtins) all elem filter;
  mkOption = tagged "option";
  mkEnableOption =
    _:
    tagged "option" {
      type = types.bool;
      default = false;
    };
  mkIf = tagIf;
  literalExpression = text: text;
  getExe = package: package.exe;
  optional = condition: item: if condition then [ item ] else [ ];
  filterAttrs =
    keep: set:
    listToAttrs (
      map (name: {
        inherit name;
        value = set.${name};
      }) (filter (name: keep name set.${name}) (attrNames set))
    );
  splitString = separator: text: filter isString (builtins.split separator text);
  removePrefix =
    prefix: text: if hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
  versionAtLeast = version: least: builtins.compareVersions version least >= 0;
}
