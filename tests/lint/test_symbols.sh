#!/bin/bash
# SPDX-License-Identifier: ISC
#
# The shared library exports what libcbshm/cbshm.sym and the header say, and nothing else; the read path needs libc alone.
. "$(dirname "$0")/lib.sh"

library=$build_dir/libcbshm/.libs/libcbshm.so

# Of the version script: what stands between global: and local:.
intended() {
	sed -n '/global:/,/local:/p' "$source_dir/libcbshm/cbshm.sym" | grep -o 'cbshm_[a-z_]*' | LC_ALL=C sort
}

exported() {
	nm -D --defined-only "$library" | awk '$2 ~ /[TBDRVW]/ { sub(/@.*/, "", $3); print $3 }' | LC_ALL=C sort
}

declared() {
	tr '\n' ' ' <"$source_dir/include/cbshm.h" | grep -o 'CBSHM_PUBLIC[^;]*' | grep -o 'cbshm_[a-z_]*(' |
		tr -d '(' | LC_ALL=C sort
}

exports_intended() { diff <(intended) <(exported); }
declares_intended() { diff <(intended) <(declared); }

# A sanitizer brings symbols of its own along.
if [ ! -e "$library" ]; then
	echo "1..0 # SKIP the shared library is not built"
	exit 0
fi
need nm
case_of "exported symbols are those of cbshm.sym" exports_intended
case_of "public functions of cbshm.h are those of cbshm.sym" declares_intended
done_testing
