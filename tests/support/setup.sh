# What tests/run, examples/run and .ci/run share; sourced by them. Says what it installs, and nothing if nothing is missing.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
missing=()

# need PACKAGE COMMAND...: the package is missing if the command fails.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

has_header() { printf '#include <%s>\n' "$1" | "${CXX:-c++}" -E -x c++ - ; }

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "These are missing, by their Debian names: ${missing[*]}" >&2
        echo "This machine has no apt-get; please install them with its own package manager, and run this again." >&2
        exit 1
    fi
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "These packages are missing: ${missing[*]}. Please install them as root:" >&2
            echo "  apt-get install ${missing[*]}" >&2
            exit 1
        fi
        sudo=(sudo)
    fi
    echo "Installing ${missing[*]}"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null || exit
    # A service that is started by the package is none of ours: our servers are private.
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || exit
    missing=()
}

# quietly COMMAND...: its output is shown only if it fails.
quietly() {
    local output
    if ! output=$("$@" 2>&1); then
        printf '%s\n' "$output" >&2
        echo "failed: $*" >&2
        return 1
    fi
}

need_to_build() {
    need g++ command -v "${CXX:-c++}"
    need cmake command -v cmake
    need make command -v make
    need libhiredis-dev has_header hiredis/hiredis.h
    need libssl-dev has_header openssl/ssl.h
    need openssl command -v openssl
    need libcli11-dev has_header CLI/CLI.hpp
    need redis-server command -v redis-server
}

# configure_and_build FOLDER TARGET CMAKE-ARGUMENT...
configure_and_build() {
    local folder=$1 target=$2
    shift 2
    [ -d "$folder" ] || echo "Building in $folder"
    quietly cmake -S "$root" -B "$folder" "$@" || return
    quietly cmake --build "$folder" --parallel "$(nproc)" --target "$target"
}
