#!/bin/bash
# SPDX-License-Identifier: ISC
#
# The unit, and the files for sysusers.d and tmpfiles.d, are understood.
. "$(dirname "$0")/lib.sh"

need systemd-analyze systemd-sysusers
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# A root with a program where the unit expects it, so that only the unit is judged.
mkdir -p "$root/etc/systemd/system" "$root/usr/lib/systemd" "$root/usr/lib/sysusers.d"
sed -e 's,@sbindir@,/usr/sbin,; s,@sysconfdir@,/etc,' "$source_dir/systemd/cbagent.service.in" \
	>"$root/etc/systemd/system/cbagent.service"

exposure() {
	systemd-analyze security --offline=true --threshold=15 --no-pager "$root/etc/systemd/system/cbagent.service"
}

case_of "the unit is understood, and little exposed" exposure
case_of "sysusers.d makes the user and the groups" systemd-sysusers --root="$root" "$source_dir/systemd/cbshm.sysusers"
case_of "the agent is in its groups" grep -q '^cbshm-admin:.*cbagent' "$root/etc/group"
done_testing
