#!/bin/bash
# SPDX-License-Identifier: ISC
#
# C is laid out as .clang-format says. Versions of clang-format differ: only the one it was written for counts.
. "$(dirname "$0")/lib.sh"

need clang-format
case $(clang-format --version) in
*' version 14.'*) ;;
*)
	echo "1..0 # SKIP clang-format 14 is not installed"
	exit 0
	;;
esac

formatted() { (cd "$source_dir" && clang-format --dry-run -Werror --style=file "$1"); }

for file in $(c_files); do
	case_of "$file" formatted "$file"
done
done_testing
