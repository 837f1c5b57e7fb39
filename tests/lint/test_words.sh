#!/bin/bash
# SPDX-License-Identifier: ISC
#
# Nothing unfinished and no path of a developer's machine is in the sources, every file says its licence.
. "$(dirname "$0")/lib.sh"

cd "$source_dir" || exit 1

files() {
	find . \( -name .git -o -name autom4te.cache -o -name 'build*' -o -name _build -o -name _inst -o -name m4 -o -name corpus \) -prune -o \
		-type f ! -name configure ! -name 'configure~' ! -name Makefile.in ! -name aclocal.m4 ! -name 'config.h.in*' \
		! -name '*.pyc' ! -name '*.csv' ! -path ./tests/lint/test_words.sh -print
}

none() { # GREP-ARGUMENTS...
	local found
	found=$(files | xargs -d '\n' grep -n -I "$@")
	[ -z "$found" ] || { echo "$found"; return 1; }
}

licensed() {
	local missing
	missing=$(files | grep -E '\.(c|h|py|sh|sql|sym|in)$|^\./(quickstart|\.ci/run)$' |
		grep -v -E 'libcbshm\.pc\.in$|\.sym$' | xargs -d '\n' grep -L 'SPDX-License-Identifier: ISC')
	[ -z "$missing" ] || { echo "$missing"; return 1; }
}

case_of "no unfinished business" none -w -E 'TODO|FIXME|XXX|HACK|TBD'
case_of "no path of this machine" none -F "$source_dir/"
case_of "no home directory" none -E '/(home|Users)/[a-z]+'
case_of "every source names its licence" licensed
done_testing
