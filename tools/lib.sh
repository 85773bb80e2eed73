# What the scripts in this folder share. They source it.
# shellcheck shell=bash

# die WHAT HOW: stop, and say what is missing and how to get it.
die() {
    printf 'speadrx: %s\n         %s\n' "$1" "$2" >&2
    exit 1
}

# leave_out WHAT WHY: say that this machine cannot run something. With STRICT=1 that is an error.
leave_out() {
    if [[ ${STRICT:-0} == 1 ]]; then
        printf 'speadrx: cannot run %s: %s\n' "$1" "$2" >&2
        exit 1
    fi
    printf 'speadrx: NOT RUN: %s: %s\n' "$1" "$2" >&2
}

# at_least OLDEST VERSION: whether a version is this one or newer.
at_least() { printf '%s\n' "$1" "$2" | sort --check=quiet --version-sort; }
