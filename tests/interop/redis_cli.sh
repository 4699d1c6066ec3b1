#!/usr/bin/env bash
# The lock by hand, in the shell, driven like ours.cpp. With a ttl of 0 it has no expiry.
set -u
key=$1 log=$2
token=

redis() { redis-cli -s "${REDIS_URL#unix://}" "$@"; }
now_ms() { echo "${EPOCHREALTIME%[.,]*}${EPOCHREALTIME: -6:3}"; }

acquire() {
    local expiry=()
    [ "$1" = 0 ] || expiry=(px "$1")
    token=$RANDOM-$RANDOM-$RANDOM-$RANDOM
    [ "$(redis set "$key" $token nx "${expiry[@]}")" = OK ]
}
# if_ours COMMAND ARGUMENT...: on the key.
if_ours() {
    local script="if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
                  return redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3))"
    [ "$(redis eval "$script" 1 "$key" "$token" "$@")" = 1 ]
}
wait_for() {
    local end=$(($(now_ms) + $2))
    until acquire "$1"; do
        [ "$(now_ms)" -lt $end ] || return
        sleep 0.005
    done
}
look() {
    local value
    value=$(redis get "$key")
    [ -z "$value" ] && echo free || echo "$value $(redis pttl "$key")"
}
work() {
    local sections=0 before end=$(($(now_ms) + $1))
    while [ "$(now_ms)" -lt $end ]; do
        wait_for 60000 600000
        before=$(<"$log")
        sleep 0.001
        echo -n "${before}c" >"$log"
        if_ours del || exit
        sections=$((sections + 1))
        sleep 0.0$((RANDOM % 5))
    done
    echo $sections
}
either() { [ $? -eq 0 ] && echo "$1" || echo "$2"; }

# shellcheck disable=SC2086 # the numbers are several words
while read -r verb numbers; do
    case $verb in
    lock) acquire $numbers; either held busy ;;
    wait) wait_for $numbers; either held busy ;;
    extend) if_ours pexpire $numbers; either confirmed refused ;;
    unlock) if_ours del; either confirmed refused ;;
    token) echo "$token" ;;
    look) look ;;
    work) work $numbers ;;
    esac
done
