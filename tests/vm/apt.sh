# shellcheck shell=bash
# To be sourced: an apt of our own, so that other suites of the machine's Debian mirror can be used without
# touching the machine's sources, lists and cache.

# Where this machine's apt takes a suite from, else the given address.
mirror_of() {
    # shellcheck disable=SC2016 # these are apt's variables
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Identifier: Packages' |
        awk -v suite="$1" -v uri="$2" '$1 == suite { uri = $2 } END { print uri }'
}

# The line for a suite in a list of sources.
source_of() {
    local mirror
    case $1 in
        *-security) mirror=$(mirror_of bookworm-security http://deb.debian.org/debian-security) ;;
        *) mirror=$(mirror_of bookworm http://deb.debian.org/debian) ;;
    esac
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main"
}

# own_apt FOLDER SUITE...: fetches the lists of the suites; sets own_apt_options for apt-get and apt-cache.
own_apt() {
    local folder=$1 suite
    shift
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    for suite in "$@"; do source_of "$suite"; done > "$folder/sources.list"
    own_apt_options=(-q -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferencesparts=/dev/null -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder/cache"
        -o APT::Sandbox::User=root -o Acquire::Languages=none
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    apt-get "${own_apt_options[@]}" -qq update
}
