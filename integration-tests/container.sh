#!/usr/bin/env bash
# The image as it is deployed: one container after the other, each with a read-only root, no privileges, a user without a
# name, no network and little memory. Usage: integration-tests/container.sh IMAGE
# Where podman is not to be had, that is said, and nothing is shown.
set -uo pipefail
image=$1
name=rebeam-test-$$
trap 'podman rm --force --time 0 "$name" > /dev/null 2>&1 || true' EXIT

fail() {
    echo "container.sh: $1" >&2
    podman logs "$name" 2>&1 | tail -20 >&2 || true
    exit 1
}

check() { # WHAT EXPECTED GOT
    [[ "$3" == $2 ]] || fail "$1: \`$3\` instead of \`$2\`"
    echo "ok: $1"
}

start() { # TARGET [OPTIONS OF PODMAN…]
    podman rm --force --time 0 "$name" > /dev/null 2>&1 || true
    podman --runtime runc run --detach --name "$name" --network=none --read-only --read-only-tmpfs=false \
        --cap-drop=all --security-opt=no-new-privileges --user 12345:12345 --shm-size=64m \
        --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 "${@:2}" "$image" "$1" --http 127.0.0.1:8080 \
        2>&1 > /dev/null | grep -v healthchecks # which podman has systemd do, where there is one
    return 0
}

inside() { podman exec "$name" "$@"; }

wait_ready() {
    for _ in $(seq 200); do
        inside rebeam health > /dev/null 2>&1 && return
        sleep 0.1
    done
    fail "it is never ready"
}

get() { inside python -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080$1').read().decode())"; }

echo "image: $(podman image inspect --format '{{.Size}}' "$image" | numfmt --to=iec)"

start app.py --memory=64m
wait_ready
check "nothing is writable, and it runs" "*read-only*" "$(inside sh -c 'echo > /tmp/x' 2>&1 | tr A-Z a-z)"
check "it is process 1" "rebeam" "$(inside cat /proc/1/comm)"
check "calls" "7" "$(inside rebeam call worker echo 7)"
check "large buffers need no file system" "8388608" "$(inside rebeam call worker large 8)"
check "the health check" "0" "$(podman healthcheck run "$name" > /dev/null && echo $?)"
check "/livez" '*"alive":true*' "$(get /livez)"
check "/readyz" '*"ready":true*' "$(get /readyz)"
check "/metrics" '*rebeam_actors{state="running"} 2*# EOF*' "$(get /metrics)"
check "doctor knows the limit" '*64.0 MiB*memory.*' "$(inside rebeam doctor | grep '  memory ')"

for _ in $(seq 10); do inside rebeam call worker orphan; done
sleep 0.5
zombies='cat /proc/[0-9]*/stat 2> /dev/null | grep -c ") Z " || true'
check "orphans are reaped" "0" "$(inside sh -c "$zombies")"

before=$(inside rebeam call bystander process)
inside rebeam call --timeout 60 worker eat 1000 > /dev/null 2>&1 && fail "it should not have survived"
why=$(inside rebeam why worker --json)
check "the fattest ends, with the reason" '*"kind":"memory_limit"*nearly used up*' "$why"
check "nobody else does" "$before" "$(inside rebeam call bystander process)"
wait_ready
check "every line is JSON" "ok" "$(podman logs "$name" 2> /dev/null | python3 -c 'import json,sys; [json.loads(l) for l in sys.stdin]; print("ok")')"

inside rebeam cast worker work 2
sleep 0.5
started=$(date +%s%N)
podman stop --time 30 "$name" > /dev/null
took=$((($(date +%s%N) - started) / 1000000))
check "what was in hand is finished" '*finished*' "$(podman logs "$name" 2> /dev/null | grep '"stdout"')"
check "the exit code of a drain" "0" "$(podman inspect --format '{{.State.ExitCode}}' "$name")"
echo "   podman stop, with a message of 2 s in hand since 0.5 s: $took ms"

start app.py --memory=64m
wait_ready
started=$(date +%s%N)
podman stop --time 30 "$name" > /dev/null
echo "   podman stop, with nothing in hand: $((($(date +%s%N) - started) / 1000000)) ms"

for case in "app.py:doomed 1" "app.py:broken 3" "nothing.py 2"; do
    start "${case% *}" --memory=64m
    check "the exit code of ${case% *}" "${case##* }" "$(podman wait "$name")"
done
echo "the image works"
