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

# With the program that was built, on a machine that has systemd's own units.
verify() {
	local said
	sed -e "s,@sbindir@,$build_dir/agent,; s,@sysconfdir@,/etc," "$source_dir/systemd/cbagent.service.in" \
		>"$root/cbagent.service"
	said=$(systemd-analyze verify --man=no "$root/cbagent.service" 2>&1) && [ -z "$said" ] && return
	echo "$said"
	return 1
}

exposure() {
	systemd-analyze security --offline=true --threshold=15 --no-pager "$root/etc/systemd/system/cbagent.service"
}

case_of "the unit is understood, and little exposed" exposure
if [ ! -e /lib/systemd/system/sysinit.target ]; then
	skip_case "systemd-analyze verify says nothing" "systemd's own units are not installed"
elif [ ! -x "$build_dir/agent/cbagent" ]; then
	skip_case "systemd-analyze verify says nothing" "cbagent is not built"
else
	case_of "systemd-analyze verify says nothing" verify
fi
case_of "sysusers.d makes the user and the groups" systemd-sysusers --root="$root" "$source_dir/systemd/cbshm.sysusers"
case_of "the agent is in its groups" grep -q '^cbshm-admin:.*cbagent' "$root/etc/group"
done_testing
