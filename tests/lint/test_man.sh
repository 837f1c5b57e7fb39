#!/bin/bash
# SPDX-License-Identifier: ISC
#
# The manual pages are good mdoc, and every cross reference to a page of ours leads somewhere.
. "$(dirname "$0")/lib.sh"

# A page about several functions is found under the name of each, too.
alias_of() { # NAME SECTION
	[ "$2" = 3 ] && grep -q "^\.Nm $1\( ,\)\?$" "$source_dir"/man/cbshm_*.3
}

references() {
	local name section missing=0
	while read -r name section; do
		case $name in
		cb* | libcbshm | io.cbshm)
			if [ ! -e "$source_dir/man/$name.$section" ] && ! alias_of "$name" "$section"; then
				echo "$name($section) does not exist"
				missing=1
			fi
			;;
		esac
	done < <(sed -n 's/^\.Xr \([^ ]*\) \([0-9]\).*/\1 \2/p' "$1")
	return "$missing"
}

need mandoc
for page in "$source_dir"/man/*.[1-8]; do
	case_of "${page##*/} is good mdoc" mandoc -T lint -W warning "$page"
	case_of "${page##*/} refers to existing pages" references "$page"
done
done_testing
