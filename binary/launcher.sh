#!/bin/sh
# streamflow @VERSION@ for Linux on @MACHINE@: these lines, and behind them Python and streamflow as a .tar.gz.
# The first start unpacks it into a directory of this user, which every later one finds; then this process becomes it.
# See docs/operations.md, "One file".
id=@ID@ machine=@MACHINE@ files=@FILES@ skip=@SKIP@

start() { # directory, then the arguments
    tree=$1/$id
    shift
    trap - TERM INT HUP
    if [ ! -e /proc/self/exe ]; then # by which the loader finds the libraries beside the program
        echo "error: streamflow needs /proc, which is not mounted here" >&2
        exit 1
    fi
    exec "$tree/bin/streamflow" -I -m streamflow "$@"
}

is_whole() { # directory; cleaners of temporary directories delete single files that nobody has read for days
    [ -x "$1/$id/bin/streamflow" ] && [ "$(find "$1/$id" -type f | wc -l)" -eq "$files" ]
}

is_ours() { # directory: it is created if it isn't there, and nobody else may have made it
    mkdir -p -m 700 "$1" 2>/dev/null
    [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] || refuse "$1" "it can't be created, or belongs to somebody else"
}

refuse() { # directory, reason
    refused="$refused
  $1: $2"
    return 1
}

unpack() { # directory
    if [ "$(uname -m)" != "$machine" ]; then
        echo "error: this is streamflow for $machine, and this machine is $(uname -m)" >&2
        exit 1
    fi
    for tool in find gzip mktemp tail tar; do
        if ! command -v "$tool" >/dev/null; then
            echo "error: streamflow needs $tool to unpack itself, once: install it, or add it to PATH" >&2
            exit 1
        fi
    done
    if ! new=$(mktemp -d "$1/.new-XXXXXXXX" 2>&1); then
        refuse "$1" "$new"
        return
    fi
    find "$1" -maxdepth 1 -name '.new-*' -mmin +60 -exec rm -rf {} + 2>/dev/null # of one that was killed
    trap 'rm -rf "$new"; exit 143' TERM
    trap 'rm -rf "$new"; exit 130' INT
    trap 'rm -rf "$new"; exit 129' HUP
    printf '#!/bin/sh\n' >"$new/.try" && chmod 700 "$new/.try"
    if ! "$new/.try" 2>/dev/null; then
        reason="programs can't be run there (mounted with noexec)"
    elif ! reason=$(tail -c "+$skip" "$0" 2>&1 | (umask 022 && tar -xzf - -C "$new" --no-same-owner) 2>&1); then
        reason=${reason:-"this file could not be unpacked"}
    else
        rm -f "$new/.try"
        chmod 755 "$new"
        sync -f "$new" 2>/dev/null # a power failure must not leave empty files under the final name
        if [ -d "$1/$id" ] && ! is_whole "$1"; then
            mv -T "$1/$id" "$new/.broken"
        fi
        mv -T "$new" "$1/$id" 2>/dev/null || rm -rf "$new" # another process was quicker
        rm -rf "$1/$id/.broken"
        trap - TERM INT HUP
        [ -x "$1/$id/bin/streamflow" ] && return
        reason="the unpacked directory disappeared"
    fi
    rm -rf "$new"
    refuse "$1" "$reason"
}

refused=
if [ -n "${STREAMFLOW_UNPACK_DIR:-}" ]; then
    place=$STREAMFLOW_UNPACK_DIR
    if [ -x "$place/$id/bin/streamflow" ]; then
        start "$place" "$@"
    fi
    mkdir -p "$place" 2>/dev/null
    if unpack "$place"; then
        start "$place" "$@"
    fi
else
    # Directories that stay, the first one from systemd's CacheDirectory=, then such as are cleaned.
    cache=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}
    for place in "${CACHE_DIRECTORY:-}" "$cache/streamflow"; do
        if [ -O "$place" ] && [ -x "$place/$id/bin/streamflow" ]; then
            start "$place" "$@"
        fi
    done
    for place in "${CACHE_DIRECTORY:-}" "$cache/streamflow"; do
        if [ -d "${place%/*/*}" ] && is_ours "$place" && unpack "$place"; then
            start "$place" "$@"
        fi
    done
    for place in /var/tmp "${TMPDIR:-/tmp}"; do
        place=$place/streamflow-binary-$(id -u)
        if is_ours "$place" && { is_whole "$place" || unpack "$place"; }; then
            start "$place" "$@"
        fi
    done
fi
echo "error: streamflow has to be unpacked once, and there is no directory for it:$refused
Set STREAMFLOW_UNPACK_DIR to a directory in which programs may be run; it may be read-only from the second start on." >&2
exit 1
