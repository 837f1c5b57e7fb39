#!/bin/bash
# SPDX-License-Identifier: ISC
#
# Shell scripts pass shellcheck.
. "$(dirname "$0")/lib.sh"

need shellcheck
cd "$source_dir" || exit 1
for script in quickstart .ci/run tests/support/summary tests/support/failures tests/*/*.sh; do
	case_of "$script" shellcheck "$script"
done
if [ -e cbctl/completion/cbctl ]; then
	case_of cbctl/completion/cbctl shellcheck -s bash cbctl/completion/cbctl
fi
done_testing
