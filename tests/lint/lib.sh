# shellcheck shell=bash
# SPDX-License-Identifier: ISC
#
# lib.sh - what the lint tests share: one TAP line for each thing they look at
#
#	need mandoc                    skips the whole test if the tool is missing
#	case_of NAME COMMAND...        ok if the command succeeds; its output is shown if not
#	done_testing
set -uo pipefail

source_dir=${CBSHM_SOURCE_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
# shellcheck disable=SC2034 # for the tests
build_dir=${CBSHM_BUILD_DIR:-$PWD}
number=0
failed=0

need() {
	local tool
	for tool in "$@"; do
		if ! command -v "$tool" >/dev/null; then
			echo "1..0 # SKIP $tool is not installed"
			exit 0
		fi
	done
}

case_of() {
	local name=$1 output
	shift
	number=$((number + 1))
	if output=$("$@" 2>&1); then
		echo "ok $number - $name"
	else
		failed=$((failed + 1))
		[ -z "$output" ] || echo "# ${output//$'\n'/$'\n'# }"
		echo "not ok $number - $name"
	fi
}

skip_case() {
	number=$((number + 1))
	echo "ok $number - $1 # SKIP $2"
}

done_testing() {
	echo "1..$number"
	[ "$failed" -eq 0 ] && [ "$number" -gt 0 ]
	exit
}

# The C sources of the project, relative to its top.
c_files() {
	(cd "$source_dir" && find include libcbshm agent cbctl examples tests -name '*.[ch]' | LC_ALL=C sort)
}
