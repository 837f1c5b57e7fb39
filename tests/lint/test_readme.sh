#!/bin/bash
# SPDX-License-Identifier: ISC
#
# What README shows can be done: its C compiles, its commands exist, its files are there.
# shellcheck disable=SC2016,SC2013 # backquotes are Markdown here; no blanks in what is listed
. "$(dirname "$0")/lib.sh"

readme=$source_dir/README.md

example_compiles() {
	{
		echo '#include <stdint.h>'
		sed -n '/^```c$/,/^```$/p' "$readme" | grep '^#include'
		echo 'extern int reference_path(int); extern int new_path(int); extern int use(int); int use(int order) {'
		echo 'int price, error;'
		sed -n '/^```c$/,/^```$/p' "$readme" | grep -v -e '^```' -e '^#include'
		echo 'return price + error; }'
	} | gcc -x c -std=c11 -Wall -Wextra -Werror -I "$source_dir/include" -fsyntax-only -
}

files_exist() {
	local path missing=0
	for path in $(grep -o '`[a-z]*/[a-z_/.]*`\|](\([^)#:]*\))' "$readme" | tr -d '`]()' | sort -u); do
		case $path in
		build/ | unit/ | integration/ | lint/ | support/ | torture/ | compat/ | fault/ | fuzz/ | bench/ | model/ | sql/) continue ;;
		esac
		if [ ! -e "$source_dir/$path" ]; then
			echo "README names $path, which does not exist"
			missing=1
		fi
	done
	return "$missing"
}

commands_exist() {
	local command missing=0
	for command in $(grep -o '\./quickstart [a-z]*' "$readme" | cut -d ' ' -f 2 | sort -u); do
		if ! "$source_dir/quickstart" help | grep -q "quickstart $command"; then
			echo "README names quickstart $command, which does not exist"
			missing=1
		fi
	done
	return "$missing"
}

need gcc
case_of "the example compiles" example_compiles
case_of "the files it names exist" files_exist
case_of "the commands it names exist" commands_exist
done_testing
