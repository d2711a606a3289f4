#!/usr/bin/env bash
# Runs a command beside the PostgreSQL and the Redis that the tests need.
#
#   services.sh run COMMAND [ARGUMENT...]
#
# Each of the two is the first of these that there is:
#   1. the server that TEST_DATABASE_URL or TEST_REDIS_URL already names;
#   2. a private one, from programs on this machine;
#   3. a private one, from Docker;
#   4. as root on Debian or Ubuntu, a private one, from packages installed for it.
# A private server has a free port, listens on 127.0.0.1 alone, keeps its data in a temporary
# folder, and is gone with its data when the command ends, however that ends.
#
# COMMAND gets TEST_DATABASE_URL, TEST_REDIS_URL, TEST_REQUIRE_SERVICES=1 and, where the Redis
# program is at hand, TEST_REDIS_SERVER: its path, for tests that stop or freeze one of their own.
#
# Kept to bash 3.2, which is what macOS has.
# shellcheck disable=SC2317 # it cannot see what a trap or await calls
set -uo pipefail

POSTGRES_IMAGE=postgres:17-bookworm
REDIS_IMAGE=redis:7-bookworm
GIVE_UP=42     # the status by which a command tells `await` that waiting is in vain

state=''       # our temporary folder
owner=''       # the user PostgreSQL runs as, where we are root
owner_by=''    # the program that switches to that user
pg_bin=''
redis_bin=''
redis_pid=''
containers=''
policy=''
command_pid=''

say() { printf 'services: %s\n' "$*" >&2; }

is_root() { [ "$(id -u)" = 0 ]; }

# --- PostgreSQL ------------------------------------------------------------------------------

start_postgres() {
    if [ -n "${TEST_DATABASE_URL:-}" ]; then
        say "PostgreSQL: as TEST_DATABASE_URL says"
    elif find_postgres && local_postgres; then
        say "PostgreSQL: $pg_bin, $TEST_DATABASE_URL"
    elif has_docker && docker_postgres; then
        say "PostgreSQL: Docker, $TEST_DATABASE_URL"
    elif install_package postgresql && find_postgres && local_postgres; then
        say "PostgreSQL: $pg_bin, $TEST_DATABASE_URL"
    else
        say "PostgreSQL is needed: install it (Debian: apt install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql@17), start Docker, or set TEST_DATABASE_URL"
        return 1
    fi
    export TEST_DATABASE_URL
}

# The newest that is whole: client packages bring some of these programs without the server.
find_postgres() {
    local on_path folder version newest=0
    on_path=$(command -v initdb) && on_path=$(dirname "$on_path")
    pg_bin=''
    for folder in "$on_path" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
        /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin \
        /Applications/Postgres.app/Contents/Versions/latest/bin; do
        [ -x "$folder/initdb" ] || continue
        [ -x "$folder/pg_ctl" ] || continue
        [ -x "$folder/postgres" ] || continue
        version=$("$folder/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
        if [ "${version:-0}" -gt "$newest" ]; then
            newest=$version
            pg_bin=$folder
        fi
    done
    [ -n "$pg_bin" ]
}

local_postgres() {
    local home=$state/postgres ctype port
    choose_owner || { say "PostgreSQL does not run as root, and no other user could be taken"; return 1; }
    rm -rf "$home" && mkdir "$home" || return 1
    if [ -n "$owner" ]; then
        chmod 711 "$state" && chown "$owner" "$home" || return 1
    fi

    # Byte order for sorting, as everywhere; but lower() and ILIKE know more than ASCII.
    ctype=$(locale -a 2>/dev/null | grep -ixE 'C\.utf-?8|en_US\.utf-?8' | head -n 1)
    # TZ spares initdb a search through every zone there is.
    if ! TZ=UTC as_owner "$pg_bin/initdb" --pgdata="$home/data" --username=postgres --auth=trust \
        --encoding=UTF8 --lc-collate=C --lc-ctype="${ctype:-C}" --no-sync >"$state/initdb.log" 2>&1; then
        say "initdb failed: $(tail -n 3 "$state/initdb.log")"
        return 1
    fi
    cat >>"$home/data/postgresql.conf" <<'CONF' || return 1
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 300
fsync = off
synchronous_commit = off
full_page_writes = off
CONF

    for _ in 1 2 3 4 5 6 7 8 9 10; do
        port=$(free_port)
        if as_owner "$pg_bin/pg_ctl" start -D "$home/data" -l "$home/log" -o "-p $port" -w -t 30 \
            >/dev/null 2>&1; then
            TEST_DATABASE_URL=postgres://postgres@127.0.0.1:$port/postgres
            return 0
        fi
        # Someone else may have taken the port since we looked.
        grep -q 'could not bind' "$home/log" 2>/dev/null || break
    done
    say "PostgreSQL did not start: $(tail -n 3 "$home/log" 2>/dev/null)"
    return 1
}

docker_postgres() {
    local name=plinth-test-postgres-$$ port
    containers="$containers $name"
    # The official image insists on a password; trust spares each test the cost of checking it.
    docker run -d --rm --name "$name" -p 127.0.0.1::5432 \
        -e POSTGRES_PASSWORD=postgres -e POSTGRES_HOST_AUTH_METHOD=trust "$POSTGRES_IMAGE" \
        -c max_connections=300 -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
        >/dev/null || return 1
    # By TCP: the server that prepares the database listens on its socket alone.
    await 60 docker exec "$name" pg_isready -q -h 127.0.0.1 -U postgres || return 1
    port=$(docker port "$name" 5432/tcp | head -n 1)
    TEST_DATABASE_URL=postgres://postgres:postgres@127.0.0.1:${port##*:}/postgres
}

# PostgreSQL refuses to run as root.
choose_owner() {
    is_root || return 0
    for owner in postgres nobody; do
        for owner_by in setpriv runuser su; do
            as_owner true 2>/dev/null && return 0
        done
    done
    owner=''
    return 1
}

as_owner() (
    [ -z "$owner" ] || cd / || exit 1
    case $owner_by in
    setpriv) exec setpriv --reuid="$(id -u "$owner")" --regid="$(id -g "$owner")" --clear-groups -- "$@" ;;
    runuser) exec runuser -u "$owner" -- "$@" ;;
    su) exec su -s /bin/sh -c "exec \"\$@\"" -- "$owner" sh "$@" ;;
    *) exec "$@" ;;
    esac
)

# --- Redis -----------------------------------------------------------------------------------

start_redis() {
    if [ -n "${TEST_REDIS_URL:-}" ]; then
        say "Redis: as TEST_REDIS_URL says"
    elif find_redis && local_redis; then
        say "Redis: $redis_bin, $TEST_REDIS_URL"
    elif has_docker && docker_redis; then
        say "Redis: Docker, $TEST_REDIS_URL"
    elif install_package redis-server && find_redis && local_redis; then
        say "Redis: $redis_bin, $TEST_REDIS_URL"
    else
        say "Redis is needed: install it (Debian: apt install redis-server; Fedora: dnf install valkey; macOS: brew install redis), start Docker, or set TEST_REDIS_URL"
        return 1
    fi
    export TEST_REDIS_URL
}

find_redis() {
    local program
    for program in redis-server /opt/homebrew/bin/redis-server /usr/local/bin/redis-server valkey-server; do
        redis_bin=$(command -v "$program") && return 0
    done
    return 1
}

local_redis() {
    local port
    mkdir -p "$state/redis" || return 1
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        port=$(free_port)
        set -m
        "$redis_bin" --port "$port" --bind 127.0.0.1 --save '' --appendonly no --dir "$state/redis" \
            >"$state/redis/log" 2>&1 </dev/null &
        redis_pid=$!
        set +m
        if await 10 redis_is_ours "$port"; then
            TEST_REDIS_URL=redis://127.0.0.1:$port
            export TEST_REDIS_SERVER=$redis_bin
            return 0
        fi
        stop_redis
        # Someone else may have taken the port since we looked.
        grep -qi 'address already in use' "$state/redis/log" || break
    done
    say "Redis did not start: $(tail -n 3 "$state/redis/log")"
    return 1
}

# Answers, and is not another's that took our port.
redis_is_ours() {
    kill -0 "$redis_pid" 2>/dev/null || return "$GIVE_UP"
    ask_redis "$1" 'INFO server' "process_id:$redis_pid"
}

docker_redis() {
    local name=plinth-test-redis-$$ port
    containers="$containers $name"
    docker run -d --rm --name "$name" -p 127.0.0.1::6379 "$REDIS_IMAGE" \
        redis-server --save '' --appendonly no >/dev/null || return 1
    port=$(docker port "$name" 6379/tcp | head -n 1)
    port=${port##*:}
    await 60 ask_redis "$port" PING +PONG || return 1
    TEST_REDIS_URL=redis://127.0.0.1:$port
}

# ask_redis PORT QUESTION ANSWER: whether a line of the reply is ANSWER.
ask_redis() (
    exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    printf '%s\r\nQUIT\r\n' "$2" >&3
    while IFS= read -r -t 2 line <&3; do
        [ "$line" = "$3"$'\r' ] && exit 0
    done
    exit 1
)

stop_redis() {
    [ -n "$redis_pid" ] || return 0
    # It keeps nothing, so it has nothing to finish; and it may be frozen.
    kill -KILL "$redis_pid" 2>/dev/null
    wait "$redis_pid" 2>/dev/null
    redis_pid=''
}

# --- Both ------------------------------------------------------------------------------------

# Below the ports that systems give out to outgoing connections.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# await SECONDS COMMAND...: until COMMAND succeeds, or gives up.
await() {
    local end=$((SECONDS + $1)) status
    shift
    while :; do
        "$@" >/dev/null 2>&1
        status=$?
        [ "$status" = 0 ] && return 0
        if [ "$status" = "$GIVE_UP" ] || [ "$SECONDS" -ge "$end" ]; then return 1; fi
        sleep 0.05
    done
}

has_docker() { command -v docker >/dev/null && docker info >/dev/null 2>&1; }

install_package() {
    is_root && [ -e /etc/debian_version ] && command -v apt-get >/dev/null || return 1
    say "installing $1"
    # We start our own, so the package need not.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    fi
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1"; } \
        >"$state/apt.log" 2>&1 </dev/null; then
        say "could not install $1: $(tail -n 1 "$state/apt.log")"
        return 1
    fi
    hash -r
}

clean_up() {
    local name
    # Nothing may cut this short. It is quick: no server is asked to save anything.
    trap '' INT TERM HUP
    # Also what a test that was killed has left behind.
    [ -z "$command_pid" ] || kill -KILL -- "-$command_pid" 2>/dev/null
    stop_redis
    if [ -e "$state/postgres/data/postmaster.pid" ]; then
        as_owner "$pg_bin/pg_ctl" stop -D "$state/postgres/data" -m immediate -w -t 10 >/dev/null 2>&1
    fi
    for name in $containers; do
        docker rm -f -v "$name" >/dev/null 2>&1
    done
    [ -z "$policy" ] || rm -f "$policy"
    [ -z "$state" ] || rm -rf "$state"
}

# The first signal is passed on; the second ends the command at once.
pass_on() {
    [ -n "$command_pid" ] || exit "$2"
    if [ -n "${passed_on:-}" ]; then
        kill -KILL -- "-$command_pid" 2>/dev/null
    else
        passed_on=1
        kill -s "$1" -- "-$command_pid" 2>/dev/null
    fi
}

run() {
    local status folder=${TMPDIR:-/tmp}
    trap clean_up EXIT
    trap 'pass_on INT 130' INT
    trap 'pass_on TERM 143' TERM
    trap 'pass_on HUP 129' HUP

    # A TMPDIR of root's may be closed to the user that PostgreSQL runs as.
    is_root && folder=/tmp
    state=$(mktemp -d "$folder/plinth-test.XXXXXX") || exit 1
    start_postgres && start_redis || exit 1
    export TEST_REQUIRE_SERVICES=1

    # A process group of its own (set -m), so that a signal reaches all that it started. Redis
    # has one too: Ctrl-C must stop it only once the command has ended.
    set -m
    "$@" </dev/null &
    command_pid=$!
    set +m
    wait "$command_pid"
    status=$?
    # A trapped signal ends the wait, not the command.
    while kill -0 "$command_pid" 2>/dev/null; do
        wait "$command_pid"
        status=$?
    done
    exit "$status"
}

if [ "${1:-}" != run ] || [ $# -lt 2 ]; then
    sed -n '2,/^set /p' "$0" | sed '/^# Kept/,$d; s/^# \{0,1\}//' >&2
    exit 2
fi
shift
run "$@"
