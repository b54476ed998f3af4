#!/usr/bin/env bash
# Makes a base image without pulling one: a minimal Debian with Python, from the machine's own package source.
# Usage: deploy/base.sh TAG [podman|docker]
set -euo pipefail
tag=$1
engine=${2:-podman}
suite=bookworm
mirror=$(apt-get indextargets --format '$(SITE)' | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv "$suite" "$work/root" "$mirror" > "$work/log" \
    || { tail -20 "$work/log" >&2; exit 1; }
rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/{doc,man,locale,info}
tar --create --directory "$work/root" --exclude=./proc/* --exclude=./sys/* . | "$engine" import --quiet - "$tag"
