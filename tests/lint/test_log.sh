#!/bin/bash
# SPDX-License-Identifier: ISC
#
# What the agent logs: whatever is not as it should be says what to do, and stands in cbagent(8).
. "$(dirname "$0")/lib.sh"

cd "$source_dir" || exit 1

# log_event() has no hint, so no error or warning may go through it.
no_problem_without_hint() {
	! tr '\n\t' '  ' <<<"$(cat agent/*.c)" | grep -o 'log_event([^;]*LOG_LEVEL_\(WARNING\|ERROR\)[^;]*;'
}

problems() {
	tr '\n\t' '  ' <<<"$(cat agent/*.c)" | grep -o 'log_problem([^"]*"[a-z_]*"\|log_lines("[a-z_]*"' | grep -o '"[a-z_]*"' |
		tr -d '"' | LC_ALL=C sort -u
}

# The events that DIAGNOSTICS lists, one a line.
documented() {
	sed -n '/^\.Sh DIAGNOSTICS/,/^\.Sh SEE ALSO/s/^\.It Sy //p' man/cbagent.8 | sed 's/ , /\n/g' | LC_ALL=C sort -u
}

case_of "errors and warnings have a hint" no_problem_without_hint
case_of "there are such events" test "$(problems | wc -l)" -gt 15
case_of "DIAGNOSTICS of cbagent(8) has them all, and no others" diff <(problems) <(documented)
done_testing
