# Sourced by the other scripts: where slow products are kept, and how they are published.
# A product lives in $CACHE under a name with a hash of its inputs, so a clean checkout finds it again.
CACHE=${CLOISTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cloister}
mkdir -p "$CACHE"
LOG=${CLOISTER_SETUP_LOG:-$CACHE/setup.log}

say() { printf '==> %s\n' "$*" >&2; }

# publish TMP FINAL: makes a finished folder or file visible under its name, whole or not at all.
publish() {
    sync -f "$1" 2>/dev/null || true
    if ! mv -T "$1" "$2" 2>/dev/null; then rm -rf "$1"; [ -e "$2" ]; fi
}

# apt-cache: the program, its answers kept until apt's lists change: it reads all of them for each, which takes seconds.
apt-cache() {
    local kept tmp
    kept=$CACHE/apt/$(hash_inputs "=$*" "=$(stat -c %Y /var/lib/apt/lists)")
    if [ ! -e "$kept" ]; then
        mkdir -p "$CACHE/apt"
        find "$CACHE/apt" -type f ! -newer /var/lib/apt/lists -delete
        tmp=$(mktemp "$CACHE/apt/.tmp.XXXXXX")
        command apt-cache "$@" >"$tmp" || { rm -f "$tmp"; return 1; }
        mv "$tmp" "$kept"
    fi
    cat "$kept"
}

# The Debian mirror this machine already uses.
debian_mirror() { apt-cache policy | sed -n 's/^ *500 \(http[^ ]*\) bookworm\/main.*/\1/p' | head -n 1; }

# hash_inputs FILE…: 16 hex digits that change when any of the files, or a value given as =VALUE, does.
hash_inputs() {
    local input
    for input in "$@"; do
        case $input in
        =*) printf '%s\n' "$input" ;;
        *) sha256sum <"$input" ;;
        esac
    done | sha256sum | cut -c1-16
}
