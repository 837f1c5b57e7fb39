#!/bin/bash
# SPDX-License-Identifier: ISC
#
# Every header compiles alone; the public one as C and C++ of any age and with either compiler's full warnings.
. "$(dirname "$0")/lib.sh"

public() { # COMPILER STANDARD LANGUAGE
	echo '#include "cbshm.h"
	extern int use(const struct cbshm_breaker *b);
	int use(const struct cbshm_breaker *b) { return cbshm_is_disabled(b) + (int)cbshm_check(b).epoch; }' |
		"$1" -x "$3" "-std=$2" -Wall -Wextra -Wpedantic -Wundef -Wcast-qual -Werror -I "$source_dir/include" \
			-fsyntax-only -
}

private() {
	local flags
	flags=$(pkg-config --cflags libpq libevent_core openssl libcjson inih uuid cunit 2>/dev/null)
	# shellcheck disable=SC2086 # the flags are several words
	printf '#include "config.h"\n#include "%s"\n' "$1" | gcc -x c -std=c11 -Wall -Werror -I "$build_dir" \
		-I "$source_dir" -I "$source_dir/include" $flags -fsyntax-only -
}

need gcc pkg-config
for standard in c11 c17; do
	case_of "cbshm.h, gcc, $standard" public gcc "$standard" c
done
for compiler in g++ clang clang++; do
	if ! command -v "$compiler" >/dev/null; then
		skip_case "cbshm.h, $compiler" "$compiler is not installed"
	elif [ "$compiler" = clang ]; then
		case_of "cbshm.h, clang, c11" public clang c11 c
	else
		for standard in c++11 c++17 c++20; do
			case_of "cbshm.h, $compiler, $standard" public "$compiler" "$standard" c++
		done
	fi
done
for header in $(c_files | grep '\.h$'); do
	case $header in
	tests/*)
		if ! pkg-config --exists cunit; then
			skip_case "$header stands alone" "CUnit is not installed"
			continue
		fi ;;
	esac
	case_of "$header stands alone" private "$header"
done
done_testing
